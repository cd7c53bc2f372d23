"""Numbers of 4 bits, two in each byte with the first one in the low half."""

import torch
from torch import Tensor


def unpacked(packed: Tensor) -> Tensor:
    """Return the numbers in `packed` [rows, n] uint8, [rows, 2 n]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def in_halves(packed: Tensor, group: int) -> Tensor:
    """Return the numbers in `packed` [rows, n] as GGUF orders those of a group, [rows, groups, group / 2].

    The first half of them is in the low halves of the bytes.
    """
    halves = unpacked(packed).view(len(packed), -1, 2, group // 2)
    return halves[:, :, 0] | halves[:, :, 1] << 4


def transposed(words: Tensor) -> Tensor:
    """Return numbers by columns as AWQ packs them, words [rows, n] int32, by rows: [8 n, rows / 2] uint8.

    The eight numbers of a word are those of columns 0, 2, 4, 6, 1, 3, 5, 7, from the lowest bits. Each two rows become
    bytes, of even and of odd places, and words are transposed before bytes are: that takes a fifth of the time.
    """
    (num_rows, num_words), low = words.shape, 0x0F0F0F0F
    first, second = words.view(num_rows // 2, 2, num_words).unbind(1)
    even, odd = first & low | (second & low) << 4, first >> 4 & low | second & ~low
    out = torch.empty(num_words, 2, 2, 2, num_rows // 2, dtype=torch.uint8)  # columns 4 i + 2 j + k of eight
    for j, halves in enumerate((even, odd)):  # bytes of columns 2 j, 4 + 2 j, 1 + 2 j, 5 + 2 j
        columns = halves.T.contiguous().view(torch.uint8).view(num_words, num_rows // 2, 2, 2)
        out[:, :, j] = columns.permute(0, 3, 2, 1)
    return out.view(8 * num_words, num_rows // 2)


def look_up_pairs(packed: Tensor, table: Tensor) -> Tensor:
    """Return the numbers that those in `packed` [n] stand for in `table` [16], [n, 2]."""
    return torch.cartesian_prod(table, table).flip(1).index_select(0, packed.int())
