"""Loading a model on several ranks: each process loads its share of the weights, at the same time as the others."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from caravan.model.backend import choose_device
from caravan.model.cpu.build import KernelsUnavailable
from caravan.model.exchange import Exchange, ExchangeFailed, SharedMemoryExchange, new_memory
from caravan.model.loader import open_checkpoint
from caravan.model.share import Share
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.joined_rank import JoinedRank, wait_for_ranks
from caravan.scheduler.loaded_model import LoadedModel, RankPlace, load
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank_cores import SYSTEM, RankCores, bind, rank_cores
from caravan.scheduler.rank_group import join_group, use_interface_of
from caravan.scheduler.rank_memory import check_rank_device
from caravan.scheduler.rank_messages import GroupJoined, StartRank
from caravan.scheduler.ranks import Ranks, Spawn, spawn_rank

if TYPE_CHECKING:
    from caravan.scheduler.rank_store import RankStore

EXCHANGE_SECONDS = 10.0  # for all ranks to come to the same product; one that hangs ends the engine then


def load_ranked(start: StartEngine, spawn: Spawn = spawn_rank, system: Path = SYSTEM) -> LoadedModel:
    """Return the first rank's part of a model whose other ranks have loaded theirs; raises as `load` does.

    Ranks on other hosts are waited for first. Raises ConnectionError if one of them ends before it has loaded.
    """
    check_rank_device(start.num_ranks, choose_device(start.device), start.num_joining_ranks)
    cores = rank_cores(start.num_ranks - start.num_joining_ranks, system)
    share = Share(0, start.num_ranks)
    joined: list[JoinedRank] = []
    if start.num_joining_ranks:
        share.check(open_checkpoint(Path(start.model_path)).config)
        joined = wait_for_ranks(start)
        use_interface_of(joined[0].connection)  # by the environment, which the ranks of this host inherit
    memory = None if joined else new_memory()
    ranks: Ranks | None = None
    try:
        # Only the first rank has the draft model.
        ranks = Ranks(msgspec.structs.replace(start, draft_model_path=""), cores, memory, spawn, joined)
        if memory is None:
            from caravan.scheduler.rank_store import RankStore  # here: it imports torch.distributed

            store = RankStore()
            _bind(start, cores[0])
            with ranks.serving(store):
                place = RankPlace(share, _join_group(store, share, start))
        else:
            place = _take_place(share, start, cores[0], memory)
        loaded = load(start, place=place)
        ranks.wait_loaded()
        return replace(loaded, ranks=ranks)
    except BaseException as error:
        if ranks is not None:
            ranks.close()
        if isinstance(error, ExchangeFailed):  # a rank has ended before it took the first message
            raise (ConnectionError if joined else ValueError)(str(error)) from None
        raise
    finally:
        if memory is not None:
            os.close(memory)


def load_rank(message: StartRank, connection: socket.socket) -> LoadedModel:
    """Return another rank's part of a model; raises as `load` does. `connection` is the one to the first rank."""
    share, start = Share(message.rank, message.num_ranks), message.start
    if message.memory is not None:
        return load(start, place=_take_place(share, start, message.cores, message.memory))
    from caravan.scheduler.rank_store import CalledStore  # here: it imports torch.distributed

    _bind(start, message.cores)
    exchange = _join_group(CalledStore(connection), share, start)
    connection.sendall(encode_frame(GroupJoined()))
    return load(start, place=RankPlace(share, exchange))


def _bind(start: StartEngine, cores: RankCores) -> None:
    """Bind this thread to the cores of a rank."""
    bind(cores)
    torch.set_num_threads(start.num_threads or cores.num_threads)  # the exchange waits according to it


def _join_group(store: "RankStore", share: Share, start: StartEngine) -> Exchange:
    device = choose_device(start.device)
    return join_group(store, share.rank, share.num_ranks, device, EXCHANGE_SECONDS)


def _take_place(share: Share, start: StartEngine, cores: RankCores, memory: int) -> RankPlace:
    """Bind this thread to the cores of a rank and join the other ranks.

    Raises ValueError if there are no kernels, which exchange what ranks compute.
    """
    _bind(start, cores)
    try:
        exchange = SharedMemoryExchange(share.rank, share.num_ranks, memory, EXCHANGE_SECONDS)
    except KernelsUnavailable as error:
        raise ValueError(f"--tensor-parallel needs the kernels, which cannot be built. {error}") from None
    return RankPlace(share, exchange)
