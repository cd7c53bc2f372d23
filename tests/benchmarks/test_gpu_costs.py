"""The cost model of the GPU path: its arithmetic against figures that were computed apart from it."""

from dataclasses import replace

import pytest

from benchmarks.gpu_costs import Cost, decode_costs, prefill_costs, roof, step_seconds
from benchmarks.gpu_shapes import BFLOAT16, FLOAT8, GPUS, INT4, LLAMA_8B, Q4_K_M, Format

H200 = next(gpu for gpu in GPUS if gpu.name == "H200")
NO_INSTRUCTIONS = {
    f"{kernel}, {num_rows} rows": 0.0
    for kernel in ("multiply", *(f"multiply_packed, {name}" for name in ("int4", "Q4_K", "Q6_K")))
    for num_rows in (16, 64, 512, 2048)
}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (BFLOAT16, (317, 7_960, 24_900)),
        (FLOAT8, (588, 12_460, 29_000)),
        (replace(FLOAT8, kv_bytes=1), (593, 15_090, 48_700)),
        (replace(INT4, layers=replace(INT4.layers, num_bytes=0.5 + 2 / 128)), (1_003, 17_170, 31_500)),
    ],
)
def test_the_roof_of_an_h200_is_that_of_bytes_over_bandwidth(weights: Format, expected: tuple[int, ...]) -> None:
    found = [roof(LLAMA_8B, weights, number, H200) for number in (1, 32, 256)]
    assert found == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize(("weights", "expected"), [(BFLOAT16, 68_000), (FLOAT8, 132_000)])
def test_a_prompt_of_2048_tokens_takes_its_matrix_operations(weights: Format, expected: int) -> None:
    costs = prefill_costs(LLAMA_8B, weights, 2048, NO_INSTRUCTIONS)
    assert 2048 / step_seconds(costs, H200, gap=0) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("weights", [BFLOAT16, FLOAT8, INT4, Q4_K_M])
@pytest.mark.parametrize("num_streams", [1, 32, 256])
def test_a_step_moves_a_little_more_than_the_roof_counts(weights: Format, num_streams: int) -> None:
    costs = decode_costs(LLAMA_8B, weights, num_streams, NO_INSTRUCTIONS)
    least = num_streams / roof(LLAMA_8B, weights, num_streams, H200)
    assert least < sum(cost.num_bytes for cost in costs) / H200.bytes_per_second < 1.11 * least


def test_the_weights_of_the_layers_and_the_head_are_read_once() -> None:
    costs = decode_costs(LLAMA_8B, BFLOAT16, 1, NO_INSTRUCTIONS)
    products = sum(cost.num_bytes for cost in costs if cost.kernel.startswith("product"))
    assert products == pytest.approx(2 * 7.505e9, rel=0.001)  # 8.03 billion less the embedding table


def test_of_a_file_in_q4_k_m_the_head_and_half_of_the_values_and_down_projections_have_more_bits() -> None:
    parts = Q4_K_M.products(LLAMA_8B)
    assert sum(one.launches * one.outputs * one.inputs for one in parts) == LLAMA_8B.num_layer_weights()
    more = sum(one.launches * one.outputs * one.inputs for one in parts if one.storage == Q4_K_M.more)
    assert more == 16 * (1024 * 4096 + 4096 * 14_336)
    costs = decode_costs(LLAMA_8B, Q4_K_M, 1, NO_INSTRUCTIONS)
    products = sum(cost.num_bytes for cost in costs if cost.kernel.startswith("product"))
    head = 128_256 * 4096
    expected = ((LLAMA_8B.num_layer_weights() - more) * 4.625 + (more + head) * 8.625) / 8
    assert products == pytest.approx(expected, rel=0.002)
    assert sum(cost.launches for cost in costs if cost.kernel.startswith("product")) == 4 * 32 + 16 + 1


def test_a_kernel_takes_as_long_as_what_it_has_most_of() -> None:
    cost = Cost(kernel="k", launches=2, num_bytes=4.8e9, matrix_operations=989e9, float64_instructions=17e9)
    assert cost.seconds(H200) == pytest.approx(1e-3)
    assert replace(cost, matrix_operations=2 * 989e9).seconds(H200) == pytest.approx(2e-3)
    assert replace(cost, matrix_operations=2 * 989e9, is_float8=True).seconds(H200) == pytest.approx(1e-3, rel=0.001)
    assert replace(cost, float64_instructions=51e9).seconds(H200) == pytest.approx(3e-3)
    assert replace(cost, instructions=4 * 33.5e9).seconds(H200) == pytest.approx(4e-3)
    assert step_seconds([cost], H200, gap=1e-3) == pytest.approx(3e-3)


def test_each_tile_of_rows_unpacks_the_weights_again() -> None:
    per_weight = NO_INSTRUCTIONS | {"multiply_packed, int4, 64 rows": 12.0, "multiply_packed, int4, 512 rows": 7.5}
    found = {num_rows: instructions_per_weight(num_rows, per_weight) for num_rows in (17, 64, 65, 256)}
    assert found == pytest.approx({17: 12.0, 64: 12.0, 65: 7.5, 256: 15.0})


def test_few_rows_have_another_tile_in_matrices_with_many_outputs() -> None:
    per_weight = NO_INSTRUCTIONS | {"multiply_packed, int4, 16 rows": 6.0, "multiply_packed, int4, 64 rows": 12.0}
    share = 2 * 14_336 * 4096 * LLAMA_8B.num_layers / LLAMA_8B.num_layer_weights()  # of gate and up
    for num_rows in (1, 16):
        assert instructions_per_weight(num_rows, per_weight) == pytest.approx(6 * share + 12 * (1 - share))


def instructions_per_weight(num_rows: int, per_weight: dict[str, float]) -> float:
    costs = decode_costs(LLAMA_8B, INT4, num_rows, per_weight)
    return sum(cost.instructions for cost in costs) / LLAMA_8B.num_layer_weights()
