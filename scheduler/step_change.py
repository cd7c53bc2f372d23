"""StepChange: what one step changed in queue, batch and pool, as sent with a snapshot for the live view."""

import msgspec


class SequenceTable(msgspec.Struct, frozen=True, array_like=True):
    """A running sequence with all of its blocks."""

    request_id: int
    num_prompt_tokens: int
    max_tokens: int
    num_tokens: int
    num_computed_tokens: int
    blocks: list[int]  # block i holds tokens i * block_size onwards


class SequenceMove(msgspec.Struct, frozen=True, array_like=True):
    """A running sequence after a step, if it did more than one token or got blocks, or did nothing."""

    request_id: int
    num_tokens: int
    num_computed_tokens: int
    taken: list[int]  # blocks appended to its table


class StepChange(msgspec.Struct, frozen=True, array_like=True):
    """The state after a step, as differences from the state before it.

    Each running sequence that is in none of the lists got one token and computed one.
    """

    step: int  # as in StepStats; the same number twice if something changed between two steps
    age_seconds: float  # before the snapshot that it comes with
    num_waiting: int
    num_used_blocks: int
    num_cached_blocks: int
    queued: list[int]  # requests that were added to the queue
    joined: list[SequenceTable]  # sequences that left the queue
    moved: list[SequenceMove]
    ended: list[int]  # requests that left the batch for good; their blocks are released
    preempted: list[int]  # requests that went back to the queue; their blocks are released
    marks: list[tuple[int, str]]  # blocks with a hash that is new here: see `block_mark`
