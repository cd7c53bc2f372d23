"""The process group of ranks that do not share memory: gloo between hosts, NCCL between GPUs."""

import os
import socket
from collections.abc import MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil
import torch

from caravan.model.exchange import DistributedExchange

if TYPE_CHECKING:  # it imports torch.distributed
    from caravan.scheduler.rank_store import RankStore


def join_group(
    store: "RankStore", rank: int, num_ranks: int, device: torch.device, timeout_seconds: float
) -> DistributedExchange:
    """Return the exchange of a rank when all ranks have joined the group; raises RuntimeError if one cannot.

    There is one group in a process. NCCL, for GPUs, has never been run here.
    """
    from torch import distributed  # here: it takes a second, and ranks of one host do not need it

    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=timeout)
    group = distributed.group.WORLD
    assert group is not None, "it has been made"
    return DistributedExchange(group)


def use_interface_of(connection: socket.socket, environ: MutableMapping[str, str] = os.environ) -> None:
    """Have gloo and NCCL listen on the network interface that a connection uses, unless variables name another one.

    By themselves they take the interface of the host's name, which is often one that other hosts do not reach.
    """
    address = str(connection.getsockname()[0]).partition("%")[0]
    for name, own in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in own):
            environ.setdefault("GLOO_SOCKET_IFNAME", name)
            environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return
