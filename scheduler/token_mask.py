"""Token masks: which tokens may come next in an output."""

from collections.abc import Sequence as Seq
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from caravan.model.sampling.sampling_params import SamplingParams

Bits = NDArray[np.uint8]  # [bytes], a bit for each token, the lowest of a byte first


class TokenMask(Protocol):
    """The tokens that may come next."""

    @property
    def mask(self) -> Bits:
        """A bit for each token; tokens after its end may not come."""
        ...

    def allows(self, token_id: int) -> bool:
        """Return whether a token may come next."""
        ...


class AllowedTokens:
    """A set of tokens that may come."""

    def __init__(self, token_ids: Seq[int]) -> None:
        bits = np.zeros(max(token_ids) + 1, dtype=bool)
        bits[list(token_ids)] = True
        self.mask: Bits = np.packbits(bits, bitorder="little")
        self._token_ids = frozenset(token_ids)

    def allows(self, token_id: int) -> bool:
        """See TokenMask."""
        return token_id in self._token_ids


class ForcedToken(AllowedTokens):
    """The only token that may come."""

    def __init__(self, token_id: int) -> None:
        super().__init__([token_id])

    def params_for(self, params: SamplingParams) -> SamplingParams:
        """Return parameters that do not exclude the token, and change nothing else that matters."""
        return msgspec.structs.replace(params, bad_words=(), logit_bias={}, min_tokens=0)


class BothMasks:
    """The tokens that both of two masks allow."""

    def __init__(self, first: TokenMask, second: TokenMask) -> None:
        self._first, self._second = first, second

    @property
    def mask(self) -> Bits:
        """See TokenMask."""
        first, second = self._first.mask, self._second.mask
        length = min(len(first), len(second))
        both: Bits = first[:length] & second[:length]
        return both

    def allows(self, token_id: int) -> bool:
        """See TokenMask."""
        return self._first.allows(token_id) and self._second.allows(token_id)


def stacked(masks: Seq[TokenMask], vocab_size: int) -> Bits:
    """Return the bits of several masks, [masks, bytes], each as long as the vocabulary needs."""
    rows = np.zeros((len(masks), -(-vocab_size // 8)), dtype=np.uint8)
    for row, one in zip(rows, masks, strict=True):
        bits = one.mask[: len(row)]
        row[: len(bits)] = bits
    return rows
