"""TokenHistory: which tokens the texts of the batch hold, on the device, for penalties.

A launched step counts the tokens that it samples. CountedTexts is what the host knows of that: a slot starts anew where
it has another text, or where a step that was not launched has sampled a token.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from caravan.model.cuda.staging import Array


class TokenHistory:
    """Counts of tokens, one slot for a text: twice the count in its output, plus 1 if its prompt has the token."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device)

    def fill(self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> None:
        """Start the counts of a slot anew, with the tokens that a text has by now."""
        seen = counts_of(prompt_token_ids, output_token_ids)
        token_ids = torch.tensor(list(seen), dtype=torch.int64).to(self.counts.device)
        self.counts[slot].zero_()
        self.counts[slot, token_ids] = torch.tensor(list(seen.values()), dtype=torch.int32).to(self.counts.device)

    def start(self, slots: Tensor, places: Tensor, counts: Tensor) -> None:
        """Start the counts of slots [N] anew, with counts [M] at places [M], slot * vocab_size + token."""
        self.counts.index_fill_(0, slots, 0)
        self.counts.view(-1).index_copy_(0, places, counts)


class CountedTexts:
    """Which text each slot of a history counts, and how long it is once the launched steps have sampled."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._texts: dict[int, tuple[Sequence[int], int]] = {}

    def forget(self) -> None:
        """Let the next step start all slots anew."""
        self._texts.clear()

    def extend(self, slots: Sequence[int], texts: Sequence[Sequence[int]], num_outputs: Sequence[int]) -> list[Array]:
        """Return what `TokenHistory.start` gets before a launch that adds a token to each of these texts.

        A text is the same object as long as it is continued, and ends with num_outputs tokens of the output. All tokens
        of a text that starts are known.
        """
        started: list[int] = []
        places: list[int] = []
        counts: list[int] = []
        for slot, text, num in zip(slots, texts, num_outputs, strict=True):
            counted, length = self._texts.get(slot, (None, 0))
            self._texts[slot] = text, len(text) + 1
            if counted is text and length == len(text):
                continue
            start = len(text) - num
            seen = counts_of(text[:start], text[start:])
            assert min(seen, default=0) >= 0, "a token is not known"
            started.append(slot)
            places += [slot * self._vocab_size + token_id for token_id in seen]
            counts += seen.values()
        return [np.array(started, np.int64), np.array(places, np.int64), np.array(counts, np.int32)]


def counts_of(prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> Counter[int]:
    """Return twice the count of each token in the output, plus 1 if the prompt has it."""
    seen = Counter({token_id: 2 * count for token_id, count in Counter(output_token_ids).items()})
    seen.update(dict.fromkeys(prompt_token_ids, 1))
    return seen
