"""A step in which all sequences decode: the commit of each sequence, without what only other steps need."""

from collections.abc import Callable
from collections.abc import Sequence as Seq

from caravan.model.sampling.sample import Sample
from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.messages import SequenceOutput
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.step_result import StepResult
from caravan.scheduler.waiting_queue import WaitingQueue


def decoded_samples(plan: Seq[ScheduledSequence], result: StepResult) -> list[Sample]:
    """Return the samples of a plan if all its sequences decode, without a grammar or draft tokens; else none."""
    samples = [sample for sample in result.samples if sample is not None]
    if len(samples) != len(plan) or result.failures or result.prompts:
        return []
    for sequence, num_tokens, drafts, _, _, num_draft_model_rows in plan:
        if num_tokens != 1 or drafts or num_draft_model_rows or sequence.matcher is not None:
            return []
        if sequence.num_computed_tokens < len(sequence.request.prompt_token_ids):
            return []  # the end of a prompt is an event
    return samples


def commit_decode(
    plan: Seq[ScheduledSequence],
    samples: Seq[Sample],
    blocks: BlockManager,
    waiting: WaitingQueue,
    max_model_len: int,
    end: Callable[[Sequence], None],
) -> list[SequenceOutput]:
    """Apply decoded_samples to their sequences and return their outputs; `end` is called with those that end."""
    outputs: list[SequenceOutput] = []
    by_key: dict[str, list[Sequence]] = {}
    block_size = blocks.block_size
    for scheduled, sample in zip(plan, samples, strict=True):
        sequence = scheduled.sequence
        token_ids = sequence.token_ids
        token_ids.append(sample.token_id)
        sequence.num_computed_tokens += 1
        reason = sequence.finish_reason(max_model_len)
        outputs.append(sequence.token_output(sample, reason))
        by_key.setdefault(sequence.request.key, []).append(sequence)
        if sequence.num_computed_tokens % block_size == 0 or len(token_ids) % block_size == 0:
            blocks.mark_pending(sequence)
            blocks.cache_computed(sequence)
        if reason is not None:
            end(sequence)
    for sequences in by_key.values():
        waiting.count_output(sequences[0], len(sequences))
    return outputs
