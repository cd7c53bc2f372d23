"""DraftPolicy: when a draft model runs, and for which sequences. No tensors.

Speculative decoding (Leviathan et al., arXiv:2211.17192, section 3.3) pays while the time of the draft model is less
than what its tokens save. Here both are measured: the seconds of each model by rows, and how often draft tokens are
right.
"""

from collections.abc import Sequence as Seq
from typing import NamedTuple

from caravan.scheduler.row_cost import RowCost
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.speculation import LEARNING_RATE, MAX_DRAFT_TOKENS, MAX_ROWS

FIRST_ACCEPTANCE = 0.6  # of a draft token, before the first observation
LEAST_GAIN = 1.02  # factor on the tokens per second below which nothing is drafted
PROBE_SHARE = 0.01  # of all seconds, for draft tokens that are not expected to pay
MAX_PROBE_SECONDS = 0.5  # saved up
EXPECTED_TOKENS = 64  # of an answer, at most: what the tokens before it cost the draft model is divided among them
LEAST_CATCH_UP = 16  # tokens in each step, whatever they cost


class DraftCandidate(NamedTuple):
    """A sequence that could get draft tokens from the draft model in this step."""

    sequence: Sequence
    chance: float  # that a draft token is right if those before it are
    max_draft_tokens: int
    num_missing_tokens: int  # tokens that the draft model has not computed, at least the last one
    num_left_tokens: int  # of its answer, at most


class DraftShare(NamedTuple):
    """What the draft model does for a sequence in a step."""

    num_rows: int = 0  # tokens of the sequence that it computes
    num_draft_tokens: int = 0


class DraftPolicy:
    """Chooses the sequences that get draft tokens, and how many, by the expected tokens per second of the step.

    Each sequence has an estimate of its acceptance, and a new one starts with that of all. Where drafting has stopped,
    single draft tokens test the estimates again: probes, which take at most PROBE_SHARE of the time.
    """

    def __init__(self) -> None:
        self.acceptance = FIRST_ACCEPTANCE  # of all sequences
        self.draft_seconds = 0.0  # of this step
        self._target, self._draft = RowCost(), RowCost()
        self._probe_seconds = 0.0  # left for probes
        self._is_probe = False

    def chance(self, sequence: Sequence) -> float:
        """Return the probability that a draft token of a sequence is right if those before it are."""
        return self.acceptance if sequence.draft_acceptance is None else sequence.draft_acceptance

    def start_step(self) -> None:
        """Begin a step."""
        self.draft_seconds = 0.0
        self._is_probe = False

    def observe_run(self, num_rows: int, seconds: float) -> None:
        """Learn from one run of the draft model."""
        self.draft_seconds += seconds
        if num_rows <= 2 * MAX_ROWS or not self._draft.is_known:
            self._draft.observe(num_rows, seconds)

    def observe_step(self, num_rows: int, seconds: float) -> None:
        """Learn from a whole step with this number of rows of the target."""
        if 0 < num_rows <= MAX_ROWS:
            self._target.observe(num_rows, seconds - self.draft_seconds)
        self._probe_seconds = min(self._probe_seconds + PROBE_SHARE * seconds, MAX_PROBE_SECONDS)
        if self._is_probe:
            self._probe_seconds -= self.draft_seconds + self._target.row_seconds

    def learn(self, sequence: Sequence, num_right: int, *, is_wrong: bool) -> None:
        """Learn that num_right draft tokens of a sequence were right, and whether the one after them was wrong."""
        for is_right in (*[True] * num_right, *[False] * is_wrong):
            chance = self.chance(sequence)
            sequence.draft_acceptance = chance + LEARNING_RATE * (is_right - chance)
            self.acceptance += LEARNING_RATE / 2 * (is_right - self.acceptance)

    def choose(
        self, candidates: Seq[DraftCandidate], num_rows: int, max_rows: int, max_run_rows: int
    ) -> list[DraftShare]:
        """Return the share of each candidate in a step with num_rows rows of the target so far.

        A run of the draft model has at most max_run_rows rows, and less where it would take longer than the step
        itself: a sequence with a long text catches up in several steps, and gets its draft tokens in the last.
        """
        shares = [DraftShare()] * len(candidates)
        if not candidates or not self._target.is_known:
            return shares
        order = sorted(range(len(candidates)), key=lambda i: (-candidates[i].chance, candidates[i].num_missing_tokens))
        chosen, depth = self._best([candidates[index] for index in order], num_rows, max_rows)
        order = order[:chosen]
        if not chosen and num_rows < max_rows:
            probe = min(range(len(candidates)), key=lambda i: candidates[i].num_missing_tokens)
            seconds = self._draft.seconds(candidates[probe].num_missing_tokens) + self._target.row_seconds
            if 0 < seconds < self._probe_seconds:
                self._is_probe, order, depth = True, [probe], 1
        num_affordable = 0  # before the first run was measured
        if self._draft.is_known:
            num_affordable = int(self._target.seconds(num_rows) / self._draft.row_seconds)
        num_left = min(max_run_rows, max(num_affordable, LEAST_CATCH_UP))
        for index in order:
            candidate = candidates[index]
            num_tokens = min(candidate.num_missing_tokens, num_left)
            is_caught_up = num_tokens == candidate.num_missing_tokens
            num_draft_tokens = min(depth, candidate.max_draft_tokens) if is_caught_up else 0
            shares[index] = DraftShare(num_tokens, num_draft_tokens)
            num_left -= num_tokens
        return shares

    def _best(self, candidates: Seq[DraftCandidate], num_rows: int, max_rows: int) -> tuple[int, int]:
        """Return how many of the candidates, the best first, get how many draft tokens; 0 of them if it does not pay.

        Each row of the step counts as a token, and the draft model runs once for each of the draft tokens of a
        sequence. Its earlier tokens are shared by the tokens that the answer is expected to have.
        """
        best = (0, 0)
        best_rate = LEAST_GAIN * num_rows / self._target.seconds(num_rows)
        for depth in range(1, MAX_DRAFT_TOKENS + 1):
            gain = catch_up_seconds = 0.0
            num_draft_tokens = 0
            for count, candidate in enumerate(candidates, 1):
                chance, num_drafts = candidate.chance, min(depth, candidate.max_draft_tokens)
                num_draft_tokens += num_drafts
                if num_rows + num_draft_tokens > max_rows:
                    break
                expected = sum(chance**place for place in range(1, num_drafts + 1))
                gain += expected
                num_expected = max(min(candidate.num_left_tokens, EXPECTED_TOKENS), 1)
                share = min((1 + expected) / num_expected, 1.0)
                catch_up_seconds += share * (candidate.num_missing_tokens - 1) * self._draft.row_seconds
                seconds = self._target.seconds(num_rows + num_draft_tokens) + depth * self._draft.seconds(count)
                rate = (num_rows + gain) / (seconds + catch_up_seconds)
                if rate > best_rate:
                    best, best_rate = (count, depth), rate
        return best
