"""Two numbers in a byte, one number after another; and words by columns, as AWQ packs them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.nibbles import in_halves, look_up_pairs, transposed, unpacked
from caravan.model.checkpoint.packed_int4 import awq
from caravan.model.checkpoint.stored_matrix import StoredMatrix
from tests.support.quantized_folders import AWQ_ORDER, in_bytes, in_words, random_places


def as_bytes(rows: list[list[int]]) -> Tensor:
    return torch.tensor([in_bytes(row) for row in rows], dtype=torch.uint8)


def test_the_first_number_is_in_the_low_half() -> None:
    rows = random_places(5, 24).tolist()
    assert unpacked(as_bytes(rows)).tolist() == rows


@pytest.mark.parametrize("group", [16, 32])
def test_groups_are_reordered_as_gguf_has_them(group: int) -> None:
    rows = random_places(3, 96).tolist()
    expected = [
        [
            [row[start + j] | row[start + j + group // 2] << 4 for j in range(group // 2)]
            for start in range(0, 96, group)
        ]
        for row in rows
    ]
    assert in_halves(as_bytes(rows), group).tolist() == expected


@pytest.mark.parametrize("num_columns", [8, 40])
def test_columns_of_awq_become_rows(num_columns: int) -> None:
    values = random_places(34, num_columns)
    words = in_words(values.tolist(), AWQ_ORDER)
    assert transposed(words).tolist() == [in_bytes(column) for column in values.T.tolist()]


def test_each_byte_stands_for_two_numbers_of_a_table() -> None:
    table = torch.randn(16, generator=torch.Generator().manual_seed(0))
    everything = torch.arange(256, dtype=torch.uint8)
    expected = [[table[byte % 16], table[byte // 16]] for byte in range(256)]
    assert look_up_pairs(everything, table).tolist() == torch.tensor(expected).tolist()


def test_an_odd_number_of_inputs_is_refused() -> None:
    config = JsonFile(Path("config.json"), {"quant_method": "awq", "group_size": -1})
    with pytest.raises(BrokenCheckpoint, match="k_proj: it has 33 inputs, an odd number"):
        awq(config)(StoredMatrix(config, "k_proj", {"k_proj.qweight": (33, 4)}, {}, lambda _: torch.empty(0)))
