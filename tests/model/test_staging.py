"""Arrays that get to a device in one copy."""

import numpy as np
import pytest
import torch

from caravan.model.cuda.staging import ALIGNMENT, NUM_BUFFERS, Array, Staging

CPU = torch.device("cpu")


def arrays(length: int) -> list[Array]:
    return [
        np.arange(length),
        np.arange(6, dtype=np.float64).reshape(2, 3) / 7,
        np.array([], np.int32),
        np.array([3, 5, 7], np.int32),
        np.array([0.5], np.float32),
    ]


@pytest.mark.parametrize("length", [0, 1, 5, 40, 1000])
def test_a_device_gets_the_arrays_with_their_types_each_at_an_aligned_address(length: int) -> None:
    staging = Staging(256, CPU)
    copied = staging.copy(staging.stage(arrays(length)))
    assert len(copied) == 5
    for found, expected in zip(copied, arrays(length), strict=True):
        assert found.numpy().dtype == expected.dtype
        assert found.tolist() == expected.ravel().tolist()
        assert found.storage_offset() * found.itemsize % ALIGNMENT == 0


@pytest.mark.parametrize("length", [5, 1000])
def test_the_first_array_is_always_at_the_same_place(length: int) -> None:
    """A graph reads it there."""
    staging = Staging(256, CPU)
    memory = staging.memory[: 8 * 5].view(torch.int64)
    first = np.arange(5)
    staging.copy(staging.stage([first, np.zeros(length)]))
    assert memory.tolist() == first.tolist()


@pytest.mark.parametrize("length", [5, 1000])
def test_a_step_can_be_staged_while_the_one_before_it_waits_for_its_copy(length: int) -> None:
    staging = Staging(256, CPU)
    staged = [staging.stage([np.full(length, number)]) for number in range(NUM_BUFFERS)]
    for number, one in enumerate(staged):
        assert staging.copy(one)[0].tolist() == [number] * length


def test_arrays_that_are_staged_do_not_change_with_those_they_come_from() -> None:
    staging = Staging(256, CPU)
    array = np.arange(5)
    staged = staging.stage([array])
    array[:] = 7
    assert staging.copy(staged)[0].tolist() == [0, 1, 2, 3, 4]
