"""Displacement: who leaves a full batch or pool so that a key that has nothing running gets in.

Keys take turns when they join, but a sequence stays until its end. Without this one key's long answers could keep all
places for minutes.
"""

from collections import Counter
from collections.abc import Sequence as Seq

from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.block_table import has_room
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.waiting_queue import WaitingQueue


def displaced_by_waiting(
    running: Seq[Sequence], waiting: WaitingQueue, pool: BlockPool, config: EngineConfig
) -> Sequence | None:
    """Return the youngest sequence of the key that has the most running, or None: nobody leaves.

    Only for the first of the queue, whose key was served least, and only if it has nothing running and does not get in
    else. Nobody leaves for a request that is less urgent, and no key loses its only sequence.
    """
    first = next(iter(waiting), None)
    if first is None or first.awaited_hash is not None:
        return None
    num_of = Counter(sequence.request.key for sequence in running)
    if first.request.key in num_of or max(num_of.values(), default=0) < 2:
        return None
    if len(running) < config.max_num_seqs and has_room(pool, first, [], running, config.block_size):
        return None
    key, _ = num_of.most_common(1)[0]
    youngest = next(sequence for sequence in reversed(running) if sequence.request.key == key)
    return youngest if youngest.request.urgency >= first.request.urgency else None
