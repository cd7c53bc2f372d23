"""Probabilities of a question's options, from the log-probabilities of their codes, and how concentrated they are.

The formulas of `confidence` are TypeSafe's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class AnswerProbabilities(NamedTuple):
    """The probabilities of the options of one question."""

    probabilities: list[float]  # in the order of the options; their sum is 1
    label_mass: float  # the probability of all codes together, before the softmax over them

    @property
    def best(self) -> int:
        """The index of the most probable option, of equal ones the first."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def score(self) -> float:
        """The expected index."""
        return math.fsum(index * probability for index, probability in enumerate(self.probabilities))

    @property
    def choice_confidence(self) -> float:
        """0 if all options are equally probable, 1 if one has all of the probability: (n * max - 1) / (n - 1)."""
        count = len(self.probabilities)
        return 1.0 if count == 1 else max(0.0, (count * self.probabilities[self.best] - 1) / (count - 1))

    @property
    def score_confidence(self) -> float:
        """1 minus the expected distance to the most probable level, as a share of the mean distance to the middle.

        max(0, 1 - sum p_i |i - mode| / mean_i |i - (n - 1) / 2|); 1 for a single level.
        """
        count = len(self.probabilities)
        if count == 1:
            return 1.0
        distance = math.fsum(p * abs(index - self.best) for index, p in enumerate(self.probabilities))
        spread = math.fsum(abs(index - (count - 1) / 2) for index in range(count)) / count
        return max(0.0, 1 - distance / spread)


def answer_probabilities(logprobs: Sequence[float]) -> AnswerProbabilities:
    """Return the softmax of log-probabilities, in float64 and not rounded.

    If every code has the probability zero, all options are equally probable.
    """
    greatest = max(logprobs)
    if greatest == -math.inf:
        return AnswerProbabilities([1 / len(logprobs)] * len(logprobs), 0.0)
    weights = [math.exp(logprob - greatest) for logprob in logprobs]
    total = math.fsum(weights)
    return AnswerProbabilities([weight / total for weight in weights], min(1.0, math.fsum(map(math.exp, logprobs))))
