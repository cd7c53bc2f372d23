"""Rows that are read some at a time: in their order, few ahead, and to the bits of a matrix that is read whole."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.unread_rows import UnreadRows
from caravan.model.cpu import linear
from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.linear import Quantization
from caravan.model.cpu.llama import CpuLlama
from caravan.model.exchange import Exchange
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.share import Share
from tests.support.block_files import write_model
from tests.support.ranks import CPU, on_ranks


def test_pieces_come_in_order_and_few_are_read_ahead() -> None:
    matrix = torch.arange(60.0).view(20, 3)
    num_read, lock = 0, threading.Lock()

    def read(rows: slice) -> Tensor:
        nonlocal num_read
        with lock:
            num_read += 1
        return matrix[rows]

    with ThreadPoolExecutor(4) as pool:
        unread = UnreadRows(matrix.shape, read, pool, 2)
        seen = []
        for number, (rows, piece) in enumerate(unread.pieces(slice(row, row + 2) for row in range(0, 20, 2)), 1):
            assert torch.equal(piece if isinstance(piece, Tensor) else torch.empty(0), matrix[rows])
            assert num_read <= number + 2
            seen.append(rows.start)
        assert seen == [*range(0, 20, 2)]
        assert list(unread.pieces([])) == []


def test_what_reading_raises_comes_with_the_piece() -> None:
    def read(rows: slice) -> Tensor:
        if rows.start:
            raise BrokenCheckpoint("It is cut off.")
        return torch.zeros(1, 1)

    with ThreadPoolExecutor(1) as pool:
        pieces = UnreadRows(torch.Size((2, 1)), read, pool, 1).pieces([slice(0, 1), slice(1, 2)])
        assert next(pieces)[0] == slice(0, 1)
        with pytest.raises(BrokenCheckpoint, match="cut off"):
            next(pieces)


def tensors_of(checkpoint: Checkpoint, quantization: Quantization, num_ranks: int) -> list[list[Tensor]]:
    """Return the tensors of each rank."""
    kernels = load_kernels()

    def run(share: Share, exchange: Exchange | None = None) -> list[Tensor]:
        model = load_model(
            checkpoint,
            torch.bfloat16,
            CPU,
            64,
            lambda config: CpuLlama(config, kernels, quantization),
            share=share,
            exchange=exchange,
        )
        return list(model.parameters())

    return [run(Share())] if num_ranks == 1 else on_ranks(num_ranks, run)


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["", "Q6_K", "Q8_0", "Q4_0"])
def test_a_tied_embedding_that_is_read_by_rows_has_the_bits_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, quantization: Quantization, num_ranks: int
) -> None:
    monkeypatch.setattr(linear, "_NUMBERS_AT_ONCE", 32 * 256)  # a tile in a piece
    path = write_model(tmp_path / "m.gguf", {"token_embd": kind}, tie_embeddings=True)
    checkpoint = open_checkpoint(path)
    in_pieces = tensors_of(checkpoint, quantization, num_ranks)
    monkeypatch.setattr(CpuLlama, "takes_rows", False)
    for pieces, expected in zip(in_pieces, tensors_of(checkpoint, quantization, num_ranks), strict=True):
        assert len(pieces) == len(expected) > 10
        assert all(torch.equal(one, other) for one, other in zip(pieces, expected, strict=True))


def test_an_embedding_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", {}, tie_embeddings=True)
    checkpoint = open_checkpoint(path)

    def read(name: str, out: Tensor, rows: slice = slice(None)) -> None:
        checkpoint.read(name, out, rows)
        if name == "token_embd.weight":
            out[-1, 0] = torch.inf

    with pytest.raises(BrokenCheckpoint, match="token_embd.weight holds values that are not finite"):
        tensors_of(replace(checkpoint, read=read), "int8", 1)
