"""Sample the next tokens of a step's rows, some of which have a mask; that of a grammar may be late."""

from torch import Tensor

from caravan.model.sampling.sample import LATE, Sample
from caravan.model.sampling.sampler import Draw, Masks
from caravan.scheduler.batch import sampling_rows
from caravan.scheduler.grammar import NOTHING_LEFT, Matcher, wait_for
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.token_mask import BothMasks, ForcedToken, TokenMask, stacked

NONE_ALLOWED = "`bad_words`, `logit_bias` and `min_tokens` exclude every token that it allows"


def draw_rows(plan: list[ScheduledSequence], logits: Tensor, draw: Draw, wait_seconds: float) -> list[Sample | None]:
    """Return the sample of each row of logits [S, vocab_size] in the plan's order, as `draw` gives them.

    Waits up to wait_seconds for masks, once for each mask unless there is nothing else to do, and as long for matchers
    to consume the tokens. LATE for a row whose grammar has a problem, or whose mask or matcher is not ready in time: a
    later step computes the row again and samples the same token.
    """
    matchers = [scheduled.sequence.matcher for scheduled in plan for _ in range(scheduled.num_logits)]
    constrained = [matcher for matcher in matchers if matcher is not None]
    if constrained:
        is_alone = len(constrained) == len(plan) and all(matcher.is_late for matcher in constrained)  # and no prompts
        wait_for([matcher for matcher in constrained if is_alone or not matcher.is_late], wait_seconds)
    token_masks = row_masks(plan)
    rows = sampling_rows(plan, token_masks)
    if not rows:
        return []
    if not any(token_masks):
        return draw(logits, rows, None)
    present = [index for index, matcher in enumerate(matchers) if matcher is None or _is_usable(matcher)]
    samples: list[Sample | None] = [LATE] * len(rows)
    if present:

        def masks(places: list[int]) -> Masks:
            found = [mask for place in places if (mask := token_masks[present[place]])]
            return stacked(found, logits.shape[1])

        here = logits if len(present) == len(rows) else logits[present]
        for index, drawn in zip(present, draw(here, [rows[i] for i in present], masks), strict=True):
            samples[index] = drawn
    owners = [scheduled.sequence for scheduled in plan for _ in range(scheduled.num_logits)]
    for index, (matcher, drawn) in enumerate(zip(matchers, samples, strict=True)):
        if matcher is None and drawn is None and token_masks[index] and logits[index].max().isfinite():
            owners[index].problem = NONE_ALLOWED
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


def row_masks(plan: list[ScheduledSequence]) -> list[TokenMask | None]:
    """Return the mask of each row of logits; None: all tokens may come.

    Every grammar allows a forced token, except inside a character of several tokens: the rest of that comes first.
    """
    masks: list[TokenMask | None] = []
    for scheduled in plan:
        sequence = scheduled.sequence
        mask: TokenMask | None = sequence.matcher or sequence.allowed
        if sequence.matcher is not None and sequence.allowed is not None:
            mask = BothMasks(sequence.matcher, sequence.allowed)
        thought = sequence.thought
        if thought is None or thought.is_over:
            masks += [mask] * scheduled.num_logits
            continue
        thought.read(sequence.token_ids, sequence.num_prompt_tokens)
        for index in range(scheduled.num_logits):
            drafts = scheduled.draft_token_ids[:index]
            text = [*sequence.token_ids, *drafts] if drafts else sequence.token_ids
            forced = thought.after(drafts).forced_token(text)
            matcher = sequence.matcher
            if forced is None or (matcher is not None and _is_usable(matcher) and not matcher.allows(forced)):
                masks.append(mask)
            else:
                masks.append(ForcedToken(forced))
    return masks


def _is_usable(matcher: Matcher) -> bool:
    return matcher.is_ready and not matcher.problem
