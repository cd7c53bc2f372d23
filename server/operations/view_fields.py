"""What a view of the engine says: a snapshot and the events of sequences, as fields of JSON."""

from typing import Any

from caravan.scheduler.messages import FREE, EngineSnapshot, SequenceEvent, StepStats


def snapshot_fields(snapshot: EngineSnapshot) -> dict[str, Any]:
    """Return the fields of a view that a snapshot has by itself."""
    stats = snapshot.stats
    return {
        "num_running": stats.num_running,
        "num_waiting": stats.num_waiting,
        "num_blocks": stats.num_blocks,
        "num_used_blocks": stats.num_used_blocks,
        "num_cached_blocks": stats.num_cached_blocks,
        "block_size": snapshot.block_size,
        "blocks_per_cell": snapshot.blocks_per_cell,
        "cell_states": "".join(map(str, snapshot.cell_states)),  # one digit per cell
        "running": snapshot.running,
        "waiting": snapshot.waiting,
    }


def without_engine(snapshot: EngineSnapshot) -> EngineSnapshot:
    """Return what is left of a snapshot when the engine has ended: a pool of the same size, all of it free."""
    return EngineSnapshot(
        stats=StepStats(num_blocks=snapshot.stats.num_blocks),
        block_size=snapshot.block_size,
        blocks_per_cell=snapshot.blocks_per_cell,
        cell_states=[FREE] * len(snapshot.cell_states),
        running=[],
        waiting=[],
    )


def event_fields(event: SequenceEvent) -> dict[str, Any]:
    """Return the fields of an event of a sequence, with its details in words."""
    return {"request": event.request_id, "kind": event.kind, "text": _text(event)}


def _text(event: SequenceEvent) -> str:
    match event.kind:
        case "wait":
            return event.reason or ""
        case "read":
            return f"{counted(event.num_tokens, 'token')} from the spill file"
        case "join" if event.num_tokens:
            return f"prefix hit, {counted(event.num_tokens, 'token')} from the cache"
        case "chunk":
            return f"{counted(event.num_tokens, 'token')} computed, {event.num_computed_tokens} so far"
        case "preempt":
            return f"{counted(event.num_tokens, 'token')} to compute again"
        case _:
            return ""


def counted(num: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"
