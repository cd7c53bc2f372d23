"""What the messages to other ranks cost a step: `python -m benchmarks.rank_messages`.

For batches of several sizes: the time that the first rank takes to send one, and the time until the other processes
have it as tensors again. No model runs.
"""

import os
import socket
import statistics
import time

import msgspec
import torch

from benchmarks.machine import machine
from caravan.model.forward_batch import ForwardBatch
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.rank_messages import RunBatch, batch_of, receive, run_batch

NUM_RUNS = 500
BLOCK_SIZE = 16
SHAPES = [(1, 1, 512), (32, 32, 1024), (64, 64, 8192), (1, 512, 4096)]  # sequences, tokens of all, context of each
NUM_RANKS = (2, 4)


def batch(num_sequences: int, num_tokens: int, context: int) -> ForwardBatch:
    """Return a batch of sequences with num_tokens tokens in all, each sequence with a context."""
    lengths = num_tokens // num_sequences
    return ForwardBatch(
        token_ids=torch.zeros(num_tokens, dtype=torch.int64),
        positions=torch.zeros(num_tokens, dtype=torch.int64),
        slot_mapping=torch.zeros(num_tokens, dtype=torch.int64),
        query_start_loc=torch.arange(0, num_tokens + 1, lengths, dtype=torch.int32),
        seq_lens=torch.full((num_sequences,), context, dtype=torch.int32),
        block_tables=torch.zeros(num_sequences, context // BLOCK_SIZE, dtype=torch.int32),
        wanted_rows=torch.arange(num_sequences),
    )


def receiver() -> tuple[int, socket.socket]:
    """Start a process that answers each batch with a byte when it has it; return its id and the socket to it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    ours.close()
    decoder = msgspec.msgpack.Decoder(RunBatch)
    try:
        while True:
            batch_of(decoder.decode(receive(theirs)), torch.device("cpu"))
            theirs.send(b"1")
    finally:
        os._exit(0)


def main() -> None:
    """Measure all shapes, and print a table."""
    print(machine())
    print(
        "| ranks | sequences | tokens | context | bytes | sent, us | received by all, us |",
        "|---|---|---|---|---|---|---|",
        sep="\n",
    )
    torch.set_num_threads(1)
    for num_ranks in NUM_RANKS:
        others = [receiver() for _ in range(num_ranks - 1)]
        for shape in SHAPES:
            one, sent, received = batch(*shape), [], []
            for _ in range(NUM_RUNS):
                began = time.perf_counter()
                frame = encode_frame(run_batch(one))
                for _, connection in others:
                    connection.sendall(frame)
                sent.append(time.perf_counter() - began)
                for _, connection in others:
                    connection.recv(1)
                received.append(time.perf_counter() - began)
            times = " | ".join(f"{1e6 * statistics.median(seconds):.0f}" for seconds in (sent, received))
            print(f"| {num_ranks} | {' | '.join(f'{number:,}' for number in shape)} | {len(frame):,} | {times} |")
        for pid, connection in others:
            connection.close()
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
