"""RopeScaling: how rotary frequencies are changed so that a model reads longer texts than it was trained on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by `factor`. Source: Position Interpolation (arXiv:2306.15595), equation 4."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """The base grows with the length of the text beyond the original one ("dynamic NTK").

    Other implementations use the length so far, so that cached keys and later queries rotate differently. Here it is
    the longest text the server accepts: a token's rotation depends on its position alone. Up to the original length
    nothing changes. Source: YaRN (arXiv:2309.00071), section 3.1 and appendix A.1.
    """

    factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Slow pairs are divided by `factor`, fast ones stay, those between are mixed. Source: Meta's llama-models."""

    factor: float
    low_freq_factor: float  # a pair that turns less often than this within the original length is slow
    high_freq_factor: float  # one that turns more often than this is fast
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """As Llama3Scaling, but mixed linearly in the pair's number, and with sharper attention.

    Source: YaRN (arXiv:2309.00071), sections 3.2 to 3.4.
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0  # turns within the original length of the last pair that stays as it is
    beta_slow: float = 1.0  # and of the first one that is squeezed
    attention_factor: float | None = None  # on cosines and sines; None: 0.1 ln(factor) + 1
    truncates: bool = True  # the two pairs' numbers are rounded


@dataclass(frozen=True, kw_only=True)
class DivisorScaling:
    """Each frequency has its own divisor, as GGUF files store Llama3Scaling (rope_freqs.weight)."""

    divisors: tuple[float, ...]

    def lists(self) -> list[tuple[float, ...]]:
        """Return all divisors."""
        return [self.divisors]


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """Each frequency has two divisors: one while texts have the original length, another for longer ones.

    As in DynamicScaling the longest text that the server accepts chooses, not the length so far.
    Source: LongRoPE (arXiv:2402.13753), sections 3.1 and 3.3.
    """

    short_divisors: tuple[float, ...]
    long_divisors: tuple[float, ...]
    original_max_position: int
    attention_factor: float

    def lists(self) -> list[tuple[float, ...]]:
        """Return the divisors of both kinds."""
        return [self.short_divisors, self.long_divisors]


RopeScaling = LongRopeScaling | LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | DivisorScaling


def scale_frequencies(
    scaling: RopeScaling | None, frequencies: Tensor, theta: float, max_position: int
) -> tuple[Tensor, float]:
    """Return the changed frequencies and the factor on cosines and sines (1 for all but YaRN and LongRoPE).

    Frequencies are angles per position, one for each pair of dimensions, [head_dim / 2], float64.
    """
    match scaling:
        case None:
            return frequencies, 1.0
        case LinearScaling(factor=factor):
            return frequencies / factor, 1.0
        case DivisorScaling(divisors=divisors):
            return frequencies / torch.tensor(divisors, dtype=torch.float64), 1.0
        case LongRopeScaling():
            is_long = max_position > scaling.original_max_position
            chosen = scaling.long_divisors if is_long else scaling.short_divisors
            return frequencies / torch.tensor(chosen, dtype=torch.float64), scaling.attention_factor
        case DynamicScaling():
            return _dynamic(scaling, frequencies, max_position), 1.0
        case Llama3Scaling():
            num_turns = scaling.original_max_position * frequencies / (2 * math.pi)
            share = (num_turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            share = share.clamp(0, 1)  # 1: fast, stays; 0: slow, squeezed
            return frequencies * (share + (1 - share) / scaling.factor), 1.0
        case YarnScaling():
            return _yarn(scaling, frequencies, theta)


def _dynamic(scaling: DynamicScaling, frequencies: Tensor, max_position: int) -> Tensor:
    dim = 2 * len(frequencies)
    if dim == 2:  # its only frequency is 1, whatever the base
        return frequencies
    stretch = max(max_position, scaling.original_max_position) / scaling.original_max_position
    growth = (scaling.factor * stretch - (scaling.factor - 1)) ** (dim / (dim - 2))
    pair = torch.arange(0, dim, 2, dtype=torch.float64)
    scaled: Tensor = frequencies * growth ** (-pair / dim)
    return scaled


def _yarn(scaling: YarnScaling, frequencies: Tensor, theta: float) -> tuple[Tensor, float]:
    dim = 2 * len(frequencies)

    def pair_with(num_turns: float) -> float:
        """Return the number of the pair that turns num_turns times within the original length."""
        return dim * math.log(scaling.original_max_position / (num_turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncates:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    share = 1 - ((torch.arange(dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)  # 1: stays; 0: squeezed
    amplitude = scaling.attention_factor
    if amplitude is None:
        amplitude = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return frequencies * (share + (1 - share) / scaling.factor), amplitude
