"""Part `equal bits`: a row alone and among others, decoded and in a chunk, in tiles of every width."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_inputs import BLOCK_KINDS, block_linear, numbers, packed_linear, paged_case, weight
from benchmarks.gpu_oracle import attended
from benchmarks.gpu_results import guarded
from benchmarks.gpu_sizes import Sizes, random_llama
from benchmarks.gpu_streams import StepTimes, make_engine, model_len, variants
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.linear import product
from caravan.model.cuda.packed_layouts import SUPERBLOCK
from caravan.model.cuda.rows import normalized, swiglu
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import Request, TokenLogprobs

Answer = tuple[list[int], list[TokenLogprobs], str | None]  # tokens, log-probabilities, how it ended
CHUNK = 30  # tokens
MOST_ANSWERS = 32


@torch.inference_mode()
def compare_bits(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield for each computation how many of the compared numbers have other bits."""
    yield from guarded("rows", _rows(sizes))
    yield from guarded("attention", _attention(sizes))
    yield from guarded("answers", _answers(sizes))


def _rows(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield the results of what is computed row by row, in batches of each size."""
    for name, (width, compute) in _row_functions(sizes).items():
        x = numbers(max(sizes.row_counts), width, device=sizes.device)
        whole = compute(x)
        parts = {count: slice(min(7, len(x) - count), min(7, len(x) - count) + count) for count in sizes.row_counts}
        pairs = [(compute(x[rows]), whole[rows]) for rows in parts.values()]
        yield _result(f"{name}: rows in batches of {', '.join(map(str, parts))}", pairs)


def _row_functions(sizes: Sizes) -> dict[str, tuple[int, Callable[[Tensor], Tensor]]]:
    """Return functions of rows, with the width of a row."""
    shapes = sizes.shapes
    functions: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {}
    for name, (outputs, inputs) in shapes.products().items():
        plain = weight(outputs, inputs, device=sizes.device)
        functions[f"product {name}"] = inputs, functools.partial(product, weight=plain)
        functions[f"product {name}, int4"] = inputs, packed_linear(plain, sizes.device)
    outputs, inputs = shapes.products()["down"]
    plain = weight(outputs, inputs, device=sizes.device)
    functions["product down, int8"] = inputs, packed_linear(plain, sizes.device, "int8")
    for kind in BLOCK_KINDS:
        width = -(-inputs // SUPERBLOCK) * SUPERBLOCK
        functions[f"product down, {kind}"] = width, block_linear(kind, outputs, width, sizes.device)[0]
    head = weight(shapes.vocab_size, shapes.hidden_size, device=sizes.device)
    functions["product head"] = shapes.hidden_size, lambda x: product(x, head, dtype=torch.float32)
    norm = 1 + numbers(shapes.hidden_size, device=sizes.device) / 10
    functions["norm"] = shapes.hidden_size, lambda x: normalized(x, x, norm, 1e-5)[1]
    functions["SwiGLU"] = 2 * shapes.intermediate_size, swiglu
    return functions


def _attention(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield the results of sequences alone and in batches, and of tokens decoded and in a chunk."""
    most = sizes.streams[-1]
    lengths = [1 + (137 * b + sizes.context - 1) % sizes.context for b in range(most)]
    for is_int8 in (False, True):
        pool = ", int8 pool" if is_int8 else ""
        case = paged_case(lengths, [1] * most, sizes.shapes, device=sizes.device, is_int8=is_int8)
        whole = attended(CudaAttention(), case)
        parts = [slice(most - count, most) for count in sizes.row_counts if count <= most]
        pairs = [(attended(CudaAttention(), case.part(rows)), whole[rows]) for rows in parts]
        yield _result(
            f"attention{pool}: sequences in batches of {', '.join(str(one[0].shape[0]) for one in pairs)}", pairs
        )
        length = sizes.context + CHUNK // 2
        chunk_len = min(CHUNK, length)
        chunk = paged_case([length], [chunk_len], sizes.shapes, device=sizes.device, is_int8=is_int8)
        rows = attended(CudaAttention(), chunk)
        pairs = [
            (attended(CudaAttention(), chunk.decoding(index)), rows[index : index + 1])
            for index in range(0, chunk_len, max(1, chunk_len // 6))
        ]
        yield _result(f"attention{pool}: tokens decoded and in a chunk", pairs)


def _answers(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield how many answers of a whole engine differ, each alone and all at once."""
    model = random_llama(sizes, "none", sizes.equal_layers, max_position=model_len(sizes))
    variant = variants(sizes)[0]
    engine = make_engine(model, sizes, variant, StepTimes(model.device, waits=False))
    requests = [_request(sizes, index) for index in range(min(sizes.streams[-1], MOST_ANSWERS))]
    together = answers(engine, requests)
    differing = sum(
        answers(engine, [request])[index] != together[index]
        for index, request in enumerate(_request(sizes, index, "alone") for index in range(len(requests)))
    )
    endings = sorted({str(answer[2]) for answer in together.values()})
    yield {
        "compared": f"answers of an engine, {variant.name}: each alone and all at once",
        "answers": len(requests),
        "differing": differing,
        "endings": endings,
        "is_right": not differing and endings == ["length"],
    }


def _request(sizes: Sizes, index: int, cache_salt: str = "") -> Request:
    """Return a request, greedy or drawn; with another salt its prompt is computed again."""
    params = SamplingParams(seed=index, max_tokens=sizes.equal_tokens, temperature=0.8 * (index % 2), num_logprobs=1)
    prompt = [(7919 * index + 31 * j) % sizes.shapes.vocab_size for j in range(3 + 9 * index)]
    return Request(request_id=index, prompt_token_ids=prompt, params=params, cache_salt=cache_salt)


def answers(engine: Engine, requests: list[Request]) -> dict[int, Answer]:
    """Return what an engine answers, by request."""
    found: dict[int, Answer] = {request.request_id: ([], [], None) for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step().outputs:
            token_ids, logprobs, _ = found[output.request_id]
            ended = output.finish_reason
            found[output.request_id] = (token_ids + output.token_ids, logprobs + output.logprobs, ended)
    return found


def _result(name: str, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return how many numbers of pairs differ; a number that is not finite is wrong, too."""
    differing = sum(int((ours != theirs).sum()) for ours, theirs in pairs)
    is_finite = all(bool(theirs.isfinite().all()) for _, theirs in pairs)
    count = sum(theirs.numel() for _, theirs in pairs)
    return {
        "compared": name,
        "numbers": count,
        "differing": differing,
        "is_right": is_finite and not differing and count > 0,
    }
