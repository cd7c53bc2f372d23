"""The sampler's kernels in Triton's interpreter: the tokens of the CPU sampler, for random rows of every kind."""

import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.cuda.picking_kernels import pairwise_sum
from caravan.model.cuda.row_table import STAGED_BYTES, mixed, summation_tree, uniforms
from caravan.model.cuda.sampler import CudaSampler
from caravan.model.cuda.sampler_launches import SamplerKernels
from caravan.model.cuda.sampling_kernels import block_sums, exponential
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import NUM_POSITIONS, Masks, SamplingRow, sample, uniform
from caravan.model.sampling.sampling_params import SamplingParams
from tests.support.extent import extent, only_in_full

pytestmark = [pytest.mark.proofs, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]  # of infinities

CPU = torch.device("cpu")
NUM_ROWS = 8
PENALTIES = ({"repetition_penalty": 1.3}, {"repetition_penalty": 0.01}, {"presence_penalty": 1.5, "seed": 3})


class Vocabulary:
    """Random rows of logits, and the rows' parameters and grammars."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self.size = vocab_size
        self.random = random.Random(seed)

    def logits(self) -> Tensor:
        """Return logits [NUM_ROWS, vocab_size]: flat or steep, with ties, or with numbers that are not finite."""
        generator = torch.Generator().manual_seed(self.random.getrandbits(40))
        logits = torch.randn(NUM_ROWS, self.size, generator=generator) * self.random.choice([0.1, 1, 3, 10])
        if self.random.random() < 0.2:
            logits = logits.round()
        if self.random.random() < 0.2:
            logits[:, : self.size // 2] = -math.inf
        if self.random.random() < 0.3:
            row, token_id = self.random.randrange(NUM_ROWS), self.random.randrange(self.size)
            logits[row, token_id] = self.random.choice([math.nan, math.inf])
            logits[(row + 1) % NUM_ROWS] = -math.inf
        return logits

    def row(self) -> SamplingRow:
        """Return a row whose parameters are each set or left out."""
        chance = self.random.random
        prompt, output = self.some_tokens(), self.some_tokens() * 2
        given: dict[str, object] = {"temperature": self.random.choice([0.0, 0.3, 1.0, 1.0, 1.7])}
        options: dict[str, Callable[[], dict[str, object]]] = {
            "top_k": lambda: {"top_k": self.random.choice([1, 2, 50, self.size // 2, self.size, self.size + 5])},
            "top_p": lambda: {"top_p": self.random.choice([1e-9, 0.1, 0.9, 0.99, 0.999999999, chance()])},
            "min_p": lambda: {"min_p": self.random.choice([0.01, 0.1, 1.0, chance()])},
            "repetition": lambda: {"repetition_penalty": self.random.choice([0.7, 1.3, 0.01, 10.0])},
            "presence": lambda: {"presence_penalty": self.random.uniform(-2, 2)},
            "frequency": lambda: {"frequency_penalty": self.random.uniform(-2, 2)},
            "bias": lambda: {"logit_bias": {token: self.random.uniform(-100, 100) for token in self.some_tokens()}},
            "words": lambda: {
                "bad_words": ((self.random.randrange(self.size),), (output[-1], *self.some_tokens()[:1]))
            },
            "minimum": lambda: {"min_tokens": 5, "stop_token_ids": (1, 7)},
            "logprobs": lambda: {"num_logprobs": self.random.choice([0, 1, 5, 20])},
        }
        for option in options.values():
            if chance() < 0.33:
                given |= option()
        params = SamplingParams(seed=self.random.getrandbits(64), max_tokens=100, **given)  # type: ignore[arg-type]
        allowed = self.some_tokens()
        return SamplingRow(
            params, self.random.randrange(10), prompt, output, allowed.__contains__ if chance() < 0.2 else None
        )

    def some_tokens(self) -> list[int]:
        """Return up to 200 tokens."""
        return [self.random.randrange(self.size) for _ in range(self.random.choice([1, 10, 200]))]

    def masks(self, rows: list[SamplingRow]) -> Masks:
        """Return the bits of the tokens that the rows' grammars allow."""
        allowed = [[row.allows is not None and row.allows(token) for token in range(self.size)] for row in rows]
        return np.packbits(np.array(allowed, np.uint8), axis=1, bitorder="little")


def differences(found: list[Sample | None], expected: list[Sample | None]) -> Iterator[tuple[object, object]]:
    """Yield samples whose tokens differ, or whose log-probabilities differ by more than roundings."""
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            if one is not other:
                yield one, other
            continue
        numbers = [[sample.logprob or 0.0, *sample.top_logprobs] for sample in (one, other)]
        is_alike = len(numbers[0]) == len(numbers[1]) and np.allclose(numbers[0], numbers[1], rtol=0, atol=2e-5)
        if one.token_id != other.token_id or (one.logprob is None) != (other.logprob is None) or not is_alike:
            yield one, other


def have_the_best_tokens(samples: list[Sample | None], logits: Tensor) -> bool:
    """Return whether the tokens beside the log-probabilities have the greatest logits of their row, best first."""
    return all(
        len(set(one.top_token_ids)) == len(one.top_token_ids)
        and row[list(one.top_token_ids)].tolist() == row.topk(len(one.top_token_ids)).values.tolist()
        for one, row in zip(samples, logits, strict=True)
        if one is not None
    )


@pytest.mark.parametrize(
    ("vocab_size", "num_batches"),
    [(300, 8), pytest.param(1000, 8, marks=only_in_full()), pytest.param(4099, 6, marks=only_in_full()), (8448, 4)],
)
def test_every_row_gets_the_token_of_the_cpu_sampler(vocab_size: int, num_batches: int) -> None:
    vocabulary = Vocabulary(vocab_size, seed=vocab_size)
    sampler = CudaSampler(NUM_ROWS, vocab_size, CPU)
    num_tokens = 0
    num_batches = extent(num_batches, 3)
    for _ in range(num_batches):
        logits, rows = vocabulary.logits(), [vocabulary.row() for _ in range(NUM_ROWS)]

        def find_masks(indices: list[int], rows: list[SamplingRow] = rows) -> Masks:
            return vocabulary.masks([rows[index] for index in indices])

        expected = sample(logits, rows, find_masks)
        found = sampler.sample(logits, rows, find_masks)
        assert list(differences(found, expected)) == []
        assert have_the_best_tokens(found, logits)
        num_tokens += sum(one is not None for one in expected)
    assert num_tokens > num_batches * NUM_ROWS // 2


def test_a_penalty_overflows_no_logit_and_a_banned_token_may_have_any() -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    logits[0, 5], logits[1, 5], logits[2, 5] = 1e38, math.nan, math.inf
    ban = {"min_tokens": 2, "stop_token_ids": (5,)}
    kinds: list[dict[str, object]] = [{"repetition_penalty": 0.01}, ban, {"bad_words": ((5,),), "temperature": 0.0}]
    rows = [
        SamplingRow(SamplingParams(seed=seed, max_tokens=9, **kind), 0, [5], [])  # type: ignore[arg-type]
        for seed, kind in enumerate(kinds)
    ]
    expected = sample(logits, rows)
    assert [one is not None and one.token_id == 5 for one in expected] == [True, False, False]
    assert None not in expected
    assert list(differences(CudaSampler(3, 300, CPU).sample(logits, rows), expected)) == []


def test_the_chosen_tokens_vary() -> None:
    """Rows whose tokens were all the same would prove little about the draw."""
    logits = torch.zeros(NUM_ROWS, 300)
    rows = [SamplingRow(SamplingParams(seed=seed, max_tokens=9), 0) for seed in range(NUM_ROWS)]
    found = CudaSampler(NUM_ROWS, 300, CPU).sample(logits, rows)
    assert len({one.token_id for one in found if one is not None}) > NUM_ROWS // 2


@pytest.mark.parametrize("params", PENALTIES)
def test_tokens_that_the_device_counts_are_penalized_as_those_that_the_host_counts(params: dict[str, float]) -> None:
    vocab_size, slots = 300, [2, -1, 0]
    generator = torch.Generator().manual_seed(7)
    penalized = SamplingParams(**{"seed": 1, "max_tokens": 9, "frequency_penalty": 2.0} | params)  # type: ignore[arg-type]
    plain = SamplingParams(seed=2, max_tokens=9)
    sampler = SamplerKernels(len(slots), vocab_size, CPU, num_slots=3)
    prompts, outputs = [[5, 6, 6], [1], [9]], [[7, 7], [], []]
    for slot, prompt, output in zip(slots, prompts, outputs, strict=True):
        if slot >= 0:
            sampler.history.fill(slot, prompt, output)
    for _ in range(4):
        logits = torch.randn(len(slots), vocab_size, generator=generator) / 3
        rows = [
            SamplingRow(own, len(output), prompt, output)
            for own, prompt, output in zip([penalized, plain, penalized], prompts, outputs, strict=True)
        ]
        sampler.table.stage(rows, slots)
        sampler.launch(logits)
        sampler.record()
        expected = [one.token_id for one in sample(logits, rows) if one is not None]
        assert sampler.tokens[: len(slots)].tolist() == expected
        for output, token_id in zip(outputs, expected, strict=True):
            output.append(token_id)
    assert max(outputs[0].count(token_id) for token_id in outputs[0]) == 2  # what was counted counts


def test_rows_that_pad_a_batch_change_no_other_row_and_no_count() -> None:
    vocab_size = 300
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(1))
    rows = [SamplingRow(SamplingParams(seed=seed, max_tokens=9, presence_penalty=1.0), 0) for seed in range(3)]
    sampler = SamplerKernels(5, vocab_size, CPU, num_slots=3)
    sampler.table.stage(rows, [0, 1, 2])
    logits[3:] = math.nan
    sampler.launch(logits)
    sampler.record()
    expected = [one.token_id for one in sample(logits[:3], rows) if one is not None]
    assert sampler.tokens[:5].tolist() == [*expected, -1, -1]
    assert [int(sampler.history.counts[slot, token_id]) for slot, token_id in enumerate(expected)] == [2, 2, 2]
    assert int(sampler.history.counts.sum()) == 6


def test_a_table_has_room_for_any_number_of_biases() -> None:
    vocab_size = 16_000
    logits = torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(1))
    bias = dict.fromkeys(range(0, vocab_size, 2), -100.0)
    rows = [SamplingRow(SamplingParams(seed=seed, max_tokens=9, logit_bias=bias), 0) for seed in range(2)]
    sampler = SamplerKernels(2, vocab_size, CPU)
    sampler.table.stage(rows, [-1, -1])
    assert 8 * len(sampler.table.bias_tokens) > STAGED_BYTES
    sampler.launch(logits)
    assert sampler.tokens[:2].tolist() == [one.token_id for one in sample(logits, rows) if one is not None]


@triton.jit
def exponentials(x, y, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(y + index, exponential(tl.load(x + index).to(tl.float64)).to(tl.float32))


def test_exponentials_are_the_nearest_numbers() -> None:
    x = -87 * torch.rand(2**17, generator=torch.Generator().manual_seed(1))
    y = torch.empty_like(x)
    exponentials[(1,)](x, y, COUNT=len(x))
    assert torch.equal(y, x.double().exp().float())


@triton.jit
def sums_of_blocks(x, y, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    lanes: tl.constexpr = 32 if WIDTH > 32 else WIDTH
    block = tl.arange(0, COUNT)
    total = tl.zeros((COUNT, lanes), tl.float32)
    for step in tl.static_range(WIDTH // lanes):
        total += tl.load(x + block[:, None] * WIDTH + step * lanes + tl.arange(0, lanes)[None, :])
    tl.store(y + block, block_sums(total, COUNT, lanes))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_blocks_are_summed_in_the_order_of_torch(width: int) -> None:
    x = torch.rand(64, width, generator=torch.Generator().manual_seed(width)) ** 8
    y = torch.empty(64)
    sums_of_blocks[(1,)](x, y, COUNT=64, WIDTH=width)
    assert torch.equal(y, x.sum(dim=-1))


@triton.jit
def whole_sum(x, starts, lengths, y, LEAVES: tl.constexpr, LEVELS: tl.constexpr):
    tl.store(y, pairwise_sum(x, starts, lengths, LEAVES, LEVELS))


@pytest.mark.parametrize("count", [1, 7, 8, 75, 128, 129, 192, 501, 1000, 4099, 64129])
def test_a_row_is_summed_in_the_order_of_numpy(count: int) -> None:
    x: NDArray[np.float32] = (np.random.default_rng(count).random(count) ** 8).astype(np.float32)
    starts, lengths = (torch.tensor(part, dtype=torch.int32) for part in summation_tree(count))
    y = torch.empty(1, dtype=torch.float64)
    whole_sum[(1,)](torch.from_numpy(x), starts, lengths, y, LEAVES=len(starts), LEVELS=len(starts).bit_length() - 1)
    assert float(y) == float(x.sum())


def test_random_numbers_of_many_rows_are_those_of_each() -> None:
    seeds, positions = [0, 1, 2**63 + 5, 2**64 - 1], [0, 7, NUM_POSITIONS + 3, 2**41]
    found = uniforms(mixed(np.array(seeds, np.uint64)), np.array(positions, np.uint64))
    assert found.tolist() == [uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)]


def test_rows_that_come_and_go_leave_nothing_in_the_table() -> None:
    vocab_size = 300
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1))
    kinds = [
        SamplingParams(seed=1, max_tokens=9, logit_bias={5: 100.0}),
        SamplingParams(seed=2, max_tokens=9, min_tokens=2, stop_token_ids=tuple(range(0, vocab_size, 2))),
        SamplingParams(seed=3, max_tokens=9, temperature=0.0),
        SamplingParams(seed=4, max_tokens=9, top_k=2),
    ]
    sampler = SamplerKernels(3, vocab_size, CPU)
    for params, position in [((0, 1, 2), 0), ((3,), 1), ((1, 3, 0), 1), ((2, 1), 2), ((3, 1, 1), 3)]:
        rows = [SamplingRow(kinds[kind], position) for kind in params]
        sampler.table.stage(rows, [-1] * len(rows))
        sampler.launch(logits)
        expected = [one.token_id for one in sample(logits[: len(rows)], rows) if one is not None]
        assert sampler.tokens[: len(rows)].tolist() == expected


def test_a_launch_keeps_its_samples_while_the_next_one_is_started() -> None:
    vocab_size = 300
    logits = torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(1))
    rows = [SamplingRow(SamplingParams(seed=seed, max_tokens=9, num_logprobs=seed), 0) for seed in range(2)]
    sampler = CudaSampler(2, vocab_size, CPU)
    expected = sample(logits, rows)
    first, second = (
        sampler.launch(one, rows, [torch.from_numpy(part.ravel()) for part in sampler.stage(rows, [1, 0], [[], []])])
        for one in (logits.clone(), -logits)
    )
    assert list(differences(first.result(), expected)) == []
    assert list(differences(second.result(), sample(-logits, rows))) == []
    assert first.token_ids.tolist() == [one.token_id for one in expected if one is not None]
    assert first.token_ids.dtype == torch.int64


def test_a_serial_step_of_other_rows_spoils_no_count() -> None:
    """It counts in slots of its own; the next launch of a row that it left out has the same length as before."""
    params = SamplingParams(seed=1, max_tokens=9, temperature=0.0, frequency_penalty=5.0)
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)) / 3
    sampler, text = CudaSampler(1, 300, CPU), [5, 6]

    def launch() -> int:
        rows = [SamplingRow(params, len(text) - 2)]
        staged = [torch.from_numpy(part.ravel()) for part in sampler.stage(rows, [0], [text])]
        return int(sampler.launch(logits, rows, staged).token_ids)

    text.append(launch())
    other = SamplingRow(params, 1, [7], [8])
    assert sampler.sample(logits, [other]) == sample(logits, [other])
    assert [launch()] == [one.token_id for one in sample(logits, [SamplingRow(params, 1, text[:2], text[2:])]) if one]
