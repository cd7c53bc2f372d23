"""Sample the next tokens of a step's rows, some of which have a grammar whose mask may be late."""

import numpy as np
from torch import Tensor

from caravan.model.sampling.sample import LATE, Sample
from caravan.model.sampling.sampler import Draw, Masks
from caravan.scheduler.batch import sampling_rows
from caravan.scheduler.grammar import NOTHING_LEFT, Matcher, wait_for
from caravan.scheduler.sequence import ScheduledSequence


def draw_rows(plan: list[ScheduledSequence], logits: Tensor, draw: Draw, wait_seconds: float) -> list[Sample | None]:
    """Return the sample of each row of logits [S, vocab_size] in the plan's order, as `draw` gives them.

    Waits up to wait_seconds for masks, once for each mask unless there is nothing else to do, and as long for matchers
    to consume the tokens. LATE for a row whose grammar has a problem, or whose mask or matcher is not ready in time: a
    later step computes the row again and samples the same token.
    """
    rows = sampling_rows(plan)
    if not rows:
        return []
    matchers = [scheduled.sequence.matcher for scheduled in plan for _ in range(scheduled.num_logits)]
    constrained = [matcher for matcher in matchers if matcher is not None]
    if not constrained:
        return draw(logits, rows, None)
    is_alone = len(constrained) == len(plan) and all(matcher.is_late for matcher in constrained)  # and no prompts
    wait_for([matcher for matcher in constrained if is_alone or not matcher.is_late], wait_seconds)
    present = [index for index, matcher in enumerate(matchers) if matcher is None or _is_usable(matcher)]
    samples: list[Sample | None] = [LATE] * len(rows)
    if present:

        def masks(places: list[int]) -> Masks:
            return np.stack([matcher.mask for place in places if (matcher := matchers[present[place]])])

        here = logits if len(present) == len(rows) else logits[present]
        for index, drawn in zip(present, draw(here, [rows[i] for i in present], masks), strict=True):
            samples[index] = drawn
    for index, (matcher, drawn) in enumerate(zip(matchers, samples, strict=True)):
        if matcher is None or drawn is LATE:
            continue
        if drawn is not None:
            matcher.offer(drawn.token_id)
        elif logits[index].max().isfinite():  # neither NaN nor infinity: the logits are finite
            matcher.fail(NOTHING_LEFT)
    wait_for([matcher for matcher in constrained if not matcher.is_late], wait_seconds)
    for index, matcher in enumerate(matchers):
        if matcher is None:
            continue
        if not _is_usable(matcher) or (samples[index] is not None and not matcher.has_taken):
            samples[index] = LATE
    return samples


def _is_usable(matcher: Matcher) -> bool:
    return matcher.is_ready and not matcher.problem
