"""Displacement: which running sequence makes way for a key that has none, when the batch or the pool is full.

Keys take turns when their sequences join, but a running sequence stays until it ends. Without displacement the long
answers of one key could fill the batch for minutes.
"""

from collections import Counter
from collections.abc import Sequence as Seq

from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.waiting_queue import WaitingQueue


def displaced_by_waiting(
    running: Seq[Sequence], waiting: WaitingQueue, blocks: BlockManager, config: EngineConfig
) -> Sequence | None:
    """Return the youngest sequence of the key that has the most running, or None.

    Only the first of the queue, whose key was served least, displaces another, and only if its key has nothing running
    and it cannot join otherwise. It never displaces a more urgent request or the only sequence of a key. Lines of
    batches (positive urgency) make way for every request that a client waits for, first of all.
    """
    first = next(iter(waiting), None)
    if first is None or first.awaited_hash is not None or first.wait_reason == "adapter being read":
        return None
    lines = [sequence for sequence in running if sequence.request.urgency > 0 >= first.request.urgency]
    num_of = Counter(sequence.request.key for sequence in running)
    if not lines and (first.request.key in num_of or max(num_of.values(), default=0) < 2):
        return None
    if len(running) < config.max_num_seqs and blocks.can_allocate(first, running):
        return None
    if lines:
        return lines[-1]
    key, _ = num_of.most_common(1)[0]
    youngest = next(sequence for sequence in reversed(running) if sequence.request.key == key)
    return youngest if youngest.request.urgency >= first.request.urgency else None
