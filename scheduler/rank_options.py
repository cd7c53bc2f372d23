"""RankOptions: what `caravan rank` passes to the process that it starts."""

import msgspec

REFUSED = 3  # exit status of a rank that the engine cannot use, and will not be able to


class RankOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rank finds its model and its engine."""

    model_path: str
    address: str  # HOST:PORT, for messages
    num_threads: int | None = None  # None: those of the engine's option, or one per core
