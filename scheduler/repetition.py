"""Repetitions: whether a text has come to repeat a pattern of tokens."""

from collections.abc import Sequence as Seq

from caravan.model.sampling.sampling_params import Repetition


class RepetitionDetector:
    """Counts, for each length of a pattern, how many of the last tokens are equal to those a pattern before them.

    The result depends on the tokens of the output alone, so a resumed request ends where it would have ended.
    """

    def __init__(self, rule: Repetition) -> None:
        self._rule = rule
        self._sizes = range(rule.min_size, rule.max_size + 1)
        self._num_equal = [0] * len(self._sizes)
        self._num_read = 0  # output tokens

    def repeats(self, token_ids: Seq[int], num_prompt_tokens: int) -> bool:
        """Read the rest of a text; return whether its output ends with a pattern as often as the rule says."""
        is_repeated = False
        num_output = len(token_ids) - num_prompt_tokens
        for index in range(self._num_read, num_output):
            token_id = token_ids[num_prompt_tokens + index]
            is_repeated = False
            for place, size in enumerate(self._sizes):
                if index >= size and token_ids[num_prompt_tokens + index - size] == token_id:
                    self._num_equal[place] += 1
                    is_repeated |= self._num_equal[place] >= size * (self._rule.min_count - 1)
                else:
                    self._num_equal[place] = 0
        self._num_read = num_output
        return is_repeated
