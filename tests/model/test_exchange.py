"""Exchanges between ranks: parts of any size, many of them, and ranks that hang, leave or die."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caravan.model.exchange import Exchange, ExchangeFailed, SharedMemoryExchange, new_memory
from caravan.model.share import Share
from tests.support.ranks import on_ranks

# Rank 1 of two: it gathers as often as its first argument says, through the memory its second one names.
RANK = """
import sys, time
import torch
from caravan.model.exchange import SharedMemoryExchange
exchange = SharedMemoryExchange(1, 2, int(sys.argv[2]), 60)
for number in range(int(sys.argv[1])):
    exchange.gather(torch.full((1, 3), float(number)), [2, 3])
print("done", flush=True)
time.sleep(60)
"""
# A rank of a gloo group of two, on the loopback interface.
GLOO_RANK = """
import sys
import torch
from datetime import timedelta
from torch import distributed
from caravan.model.cpu.build import load_kernels
from caravan.model.exchange import DistributedExchange, ExchangeFailed
rank = int(sys.argv[1])
distributed.init_process_group(
    "gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
exchange = DistributedExchange(distributed.group.WORLD)
parts = [torch.arange(10).view(2, 5).bfloat16(), -torch.arange(4).view(2, 2).bfloat16()]
for gather in (exchange.gather, exchange.native(load_kernels()).gather):
    assert torch.equal(gather(parts[rank], [5, 2]), torch.cat(parts, dim=1))
if rank == 1:
    distributed.destroy_process_group()
    sys.exit()
for _ in range(2):
    try:
        exchange.gather(parts[0], [5, 2])
    except ExchangeFailed as error:
        print("failed", error)
"""


def whole_and_parts(num_rows: int, sizes: list[int], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return random bits, and the part of each rank."""
    generator = torch.Generator().manual_seed(num_rows)
    whole = torch.randint(-(2**15), 2**15, (num_rows, sum(sizes)), generator=generator).to(dtype)
    return whole, [part.contiguous() for part in whole.split(sizes, dim=1)]


@pytest.mark.parametrize(
    ("num_rows", "sizes", "dtype"),
    [
        (1, [5], torch.float32),
        (3, [64, 128, 64, 128], torch.bfloat16),
        (7, [1, 0, 5], torch.float32),
        (0, [2, 3], torch.float32),
        (300, [2304, 1536], torch.bfloat16),  # parts that do not fit into the memory at once
        (2, [300_001, 7], torch.float32),  # rows that do not
        (5000, [333, 1000, 1], torch.bfloat16),
    ],
)
def test_parts_of_uneven_sizes_stand_side_by_side(num_rows: int, sizes: list[int], dtype: torch.dtype) -> None:
    whole, parts = whole_and_parts(num_rows, sizes, dtype)
    for gathered in on_ranks(len(sizes), lambda share, exchange: exchange.gather(parts[share.rank], sizes)):
        assert torch.equal(gathered, whole)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_thousands_of_exchanges_follow_each_other(num_ranks: int) -> None:
    """Each part is the sum of what was gathered before, so that one mistake is seen in all that follows."""
    sizes = [1 + rank for rank in range(num_ranks)]

    def run(share: Share, exchange: Exchange) -> list[int]:
        seen = [share.rank]
        for number in range(3000):
            part = torch.full((1 + number % 3, sizes[share.rank]), (seen[-1] + number + share.rank) % 9973)
            seen.append(int(exchange.gather(part, sizes).sum()) % 9973)
        return seen[1:]

    results = on_ranks(num_ranks, run)
    assert len(set(results[0])) > 1000
    assert all(one == other for one, other in pairwise(results))


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = new_memory()
    yield descriptor
    os.close(descriptor)


def seconds_to_fail(exchange: Exchange, match: str) -> float:
    """Return how long a gather takes that must fail; the next one fails at once, with the same message."""
    started = time.monotonic()
    with pytest.raises(ExchangeFailed, match=match):
        exchange.gather(torch.zeros(1, 2), [2, 3])
    seconds = time.monotonic() - started
    with pytest.raises(ExchangeFailed, match=match):
        exchange.gather(torch.zeros(1, 2), [2, 3])
    return seconds


def test_a_rank_that_does_not_come_is_noticed_after_the_timeout(memory: int) -> None:
    exchange = SharedMemoryExchange(0, 2, memory, 0.3)
    assert seconds_to_fail(exchange, "rank 1 did not answer in time") >= 0.3


def test_a_rank_that_hangs_is_noticed_after_the_timeout(memory: int) -> None:
    exchange, _other = SharedMemoryExchange(0, 2, memory, 0.3), SharedMemoryExchange(1, 2, memory, 0.3)
    assert seconds_to_fail(exchange, "rank 1 did not answer in time") >= 0.3


def test_a_rank_that_leaves_is_noticed_at_once(memory: int) -> None:
    exchange, other = SharedMemoryExchange(0, 2, memory, 60), SharedMemoryExchange(1, 2, memory, 60)
    leaving = threading.Timer(0.1, other.close)
    leaving.start()
    assert seconds_to_fail(exchange, "rank 1 has left") < 30
    leaving.join()
    with pytest.raises(ExchangeFailed, match="closed"):
        other.gather(torch.zeros(1, 3), [2, 3])


def test_what_a_rank_gave_before_it_left_is_gathered(memory: int) -> None:
    sizes = [2, 3]
    exchange, other = SharedMemoryExchange(0, 2, memory, 60), SharedMemoryExchange(1, 2, memory, 60)

    def give_and_leave() -> None:
        other.gather(torch.ones(1, 3), sizes)
        other.close()

    leaving = threading.Thread(target=give_and_leave)
    leaving.start()
    assert exchange.gather(torch.zeros(1, 2), sizes).tolist() == [[0, 0, 1, 1, 1]]
    leaving.join()
    seconds_to_fail(exchange, "rank 1 has left")


def test_ranks_with_different_batches_fail() -> None:
    def run(share: Share, exchange: Exchange) -> None:
        with pytest.raises(ExchangeFailed, match="another batch|has left"):
            exchange.gather(torch.zeros(1 + share.rank, 2), [2, 2])

    on_ranks(2, run)


@pytest.mark.parametrize("num_exchanges", [0, 5])
def test_a_rank_that_is_killed_is_noticed_long_before_the_timeout(memory: int, num_exchanges: int) -> None:
    exchange = SharedMemoryExchange(0, 2, memory, 60)
    command = [sys.executable, "-c", RANK, str(num_exchanges), str(memory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[memory]) as process:
        for number in range(num_exchanges):
            assert exchange.gather(torch.zeros(1, 2), [2, 3]).tolist() == [[0, 0, number, number, number]]
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        killing = threading.Timer(0.2, process.kill)
        killing.start()
        seconds = seconds_to_fail(exchange, "the process of rank 1 has ended")  # nobody has waited for it yet
        assert process.returncode is None
        assert seconds < 30
        killing.join()


def test_one_rank_cannot_be_there_twice(memory: int) -> None:
    _exchange = SharedMemoryExchange(0, 2, memory, 1)
    with pytest.raises(ValueError, match="rank 0 is there already"):
        SharedMemoryExchange(0, 2, memory, 1)


def test_what_cannot_be_memory_of_an_exchange_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="cannot have .* bytes of shared memory"):
        SharedMemoryExchange(0, 2, writer, 1)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("part", "sizes", "message"),
    [
        (torch.zeros(1, 2), [2, 3, 4], "3 sizes for 2 ranks"),
        (torch.zeros(1, 2), [3, 2], "contiguous rows of 3 numbers"),
        (torch.zeros(2, 2).t()[:, :2], [2, 2], "contiguous"),
        (torch.zeros(2), [2, 2], "contiguous"),
    ],
)
def test_a_part_of_another_shape_is_refused(memory: int, part: Tensor, sizes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedMemoryExchange(0, 2, memory, 1).gather(part, sizes)


@pytest.mark.slow
def test_gloo_exchanges_bytes_and_notices_a_rank_that_is_gone(tmp_path: Path) -> None:
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", GLOO_RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        for rank in range(2)
    ]
    (first, _), (second, _) = (rank.communicate(timeout=120) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    failures = first.splitlines()
    assert len(failures) == 2
    assert failures[0] == failures[1]
    assert failures[0].startswith("failed Rank 0 of 2: ")
    assert second == ""
