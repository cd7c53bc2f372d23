"""The reports of `caravan inspect` and `caravan plan`, made without reading the weights."""

import functools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Literal

from caravan.model.backend import choose_backend
from caravan.model.checkpoint.checkpoint import Checkpoint, num_parameters, weight_parts
from caravan.model.config import ModelConfig
from caravan.model.kv_cache import POOL_DTYPES, KVDtype, kv_bytes_per_token
from caravan.model.loader import open_checkpoint
from caravan.model.rope_scaling import RopeScaling
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.scheduler.config import CPU_DEFAULTS, GPU_DEFAULTS, EngineLimits, plan_engine, standby_bytes
from caravan.scheduler.memory import gpu_step_bytes
from caravan.scheduler.model_costs import model_costs

Row = tuple[str, str]
_BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2}


def inspect_model(path: Path) -> list[Row]:
    """Return the architecture of a model and its memory cost; raises as open_checkpoint does for an unsupported one."""
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    count = num_parameters(checkpoint)
    backend = choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=EngineLimits().block_size)
    return [
        ("Model", str(path)),
        ("Format", checkpoint.format),
        ("Stored as", ", ".join(sorted(checkpoint.stored_types))),
        ("Parameters", f"{count:,}"),
        ("Layers", f"{config.num_layers}"),
        ("Hidden size", f"{config.hidden_size:,}, {config.intermediate_size:,} inside the feed-forward network"),
        ("Heads", f"{config.num_heads} of size {config.head_dim}"),
        ("KV heads", f"{config.num_kv_heads} ({_kind_of_attention(config)})"),
        ("Attention", _attention(config)),
        ("RoPE", f"theta {config.rope_theta:g}, {_scaling(config.rope_scaling)}"),
        ("Context", f"{config.max_position:,} tokens"),
        ("Vocabulary", f"{config.vocab_size:,} tokens, {'tied' if config.tie_embeddings else 'untied'} output head"),
        *_blocks(checkpoint),
        ("Weights", _in_both_dtypes(count)),
        ("By default", f"{backend.weight_bytes / 1e6:,.0f} MB, {backend.text}"),
        ("KV cache", f"{_kv_bytes_in_each_dtype(config)} per token"),
        *_tokenizer_rows(checkpoint),
    ]


def plan_model(
    path: Path,
    *,
    memory_bytes: int,
    prompt_tokens: int,
    output_tokens: int,
    dtype: str,
    quantization: Literal["auto", "none", "native", "int8", "int4"],
    kv_cache_dtype: KVDtype,
    limits: EngineLimits,
    draft_path: Path | None = None,
    gpu: str | None = None,
) -> list[Row]:
    """Return how many requests fit into `memory_bytes`, computed as the engine does when it allocates memory.

    With the name of a GPU, its memory is planned as an engine on a GPU does: the pool gets more of it, and a step more
    sequences and tokens. The weights and the KV cache of a draft model at `draft_path` are counted, too.
    Raises ValueError, with the way out, when the model or the limits do not fit.
    """
    costs = model_costs(
        path,
        draft_path,
        dtype=dtype,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        block_size=limits.block_size,
        is_gpu=gpu is not None,
    )
    config, backend, draft = costs.checkpoint.config, costs.backend, costs.draft
    bytes_per_token, weight_bytes = costs.token_bytes, costs.weight_bytes
    drafts: list[Row] = []
    if draft is not None:
        share = f"{draft.token_bytes:,} of the {bytes_per_token:,} bytes of a token in the KV pool"
        drafts = [("Draft", f"{draft.weight_bytes / 1e6:,.0f} MB, {draft.backend.text}; {share}")]
    if weight_bytes > memory_bytes:
        way_out = "Raise --memory, or set --quantization." if gpu is None else "Choose another --device."
        raise ValueError(
            f"The weights take {weight_bytes:,} bytes, more than the {memory_bytes:,} available. {way_out}"
        )
    step_bytes = functools.partial(gpu_step_bytes, config, None if draft is None else draft.checkpoint.config)
    engine = plan_engine(
        limits,
        kv_bytes_per_token=bytes_per_token,
        max_position=config.max_position,
        free_memory_bytes=memory_bytes - weight_bytes,
        weight_bytes=weight_bytes,
        defaults=CPU_DEFAULTS if gpu is None else GPU_DEFAULTS,
        step_bytes=None if gpu is None else step_bytes,
    )
    length = prompt_tokens + output_tokens
    if length > engine.max_model_len:
        raise ValueError(
            f"A request of {length} tokens exceeds --max-model-len, {engine.max_model_len}. Lower --prompt or --output."
        )
    fits = engine.num_requests_of(length)
    at_once = min(fits, engine.max_num_seqs)
    pool_bytes = engine.num_tokens * bytes_per_token
    standby = [("Standby", f"{standby_bytes(weight_bytes) / 1e6:,.0f} MB, the weights again included")]
    reserve = step_bytes(engine.max_batch_tokens, engine.max_num_seqs, engine.max_model_len)
    device = [("GPU", f"{gpu}, {memory_bytes / 1e9:,.0f} GB; {reserve / 1e6:,.0f} MB of it for the tensors of a step")]
    steps = math.ceil(at_once * prompt_tokens / engine.max_batch_tokens)
    return [
        *(device if gpu is not None else []),
        ("Weights", f"{backend.weight_bytes / 1e6:,.0f} MB, {backend.text}"),
        *drafts,
        *(standby if limits.has_standby else []),
        ("KV pool", f"{engine.num_tokens:,} tokens in {engine.num_blocks:,} blocks of {engine.block_size} "
         f"({pool_bytes / 1e6:,.0f} MB) in {_name(costs.kv_dtype)}"),
        ("Capacity", f"{fits:,} requests of {length:,} tokens ({prompt_tokens:,} prompt, {output_tokens:,} output)"),
        ("Batch", f"{at_once:,} requests run, the others wait (max_num_seqs {engine.max_num_seqs})"),
        ("Prefill", f"{steps:,} steps of {engine.max_batch_tokens} tokens for the prompts of the batch"),
        ("Limits", f"max_model_len {engine.max_model_len:,}, max_batch_tokens {engine.max_batch_tokens:,}"),
    ]  # fmt: skip


def _blocks(checkpoint: Checkpoint) -> list[Row]:
    """Return which matrices of the files are in which blocks, as in "Q4_K: attn_q, 8 of 16 attn_v"; no row without."""
    kinds: dict[str, Counter[str]] = {}  # kind of matrix -> kinds of its blocks, "" without
    for source in {part.source: None for parts in weight_parts(checkpoint).values() for part in parts}:
        name = re.sub(r"^.*\.\d+\.|\.weight$", "", source)
        kinds.setdefault(name, Counter())[checkpoint.blocks.get(source, "")] += 1
    matrices: dict[str, list[str]] = {}
    for name, counts in kinds.items():
        for kind, count in counts.items():
            share = f"{count} of {counts.total()} " if count < counts.total() else ""
            matrices.setdefault(kind, []).append(share + name)
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in matrices.items() if kind)
    return [("Blocks", text)] if text else []


def text_of(rows: list[Row]) -> str:
    """Return the rows as lines with their values in one column."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _kind_of_attention(config: ModelConfig) -> str:
    if config.num_kv_heads == config.num_heads:
        return "multi-head attention"
    if config.num_kv_heads == 1:
        return "multi-query attention"
    return f"grouped-query attention, {config.num_heads // config.num_kv_heads} heads for each"


def _attention(config: ModelConfig) -> str:
    parts = []
    if config.has_qkv_bias:
        parts.append("biases")
    if config.has_query_key_norm:
        parts.append("query and key norms")
    if config.sliding_window is not None:
        layers = f" from layer {config.num_full_layers} on" if config.num_full_layers else ""
        parts.append(f"a window of {config.sliding_window:,} tokens{layers}")
    return f"causal, with {' and '.join(parts)}" if parts else "causal"


def _scaling(scaling: RopeScaling | None) -> str:
    return "not scaled" if scaling is None else f"scaled: {scaling}"


def _in_both_dtypes(num_values: int) -> str:
    return ", ".join(f"{num_values * size:,} bytes in {name}" for name, size in _BYTES_PER_VALUE.items())


def _kv_bytes_in_each_dtype(config: ModelConfig) -> str:
    return ", ".join(f"{kv_bytes_per_token(config, dtype):,} bytes in {_name(dtype)}" for dtype in POOL_DTYPES)


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _tokenizer_rows(checkpoint: Checkpoint) -> list[Row]:
    """Return the rows of the tokenizer; an unusable tokenizer is reported in a row."""
    try:
        tokenizer = load_tokenizer(checkpoint.path)
    except (OSError, ValueError) as error:
        return [("Unsupported", " ".join(str(error).split()))]
    ends = [text for text, token_id in tokenizer.special_tokens.items() if token_id in tokenizer.eos_token_ids]
    return [
        ("BOS", ascii(tokenizer.bos_token) if tokenizer.bos_token else "none"),
        ("Ends", " ".join(map(ascii, ends)) or "none"),
        ("Chat", _templates(tokenizer)),
        ("Unsupported", "nothing"),
    ]


def _templates(tokenizer: Tokenizer) -> str:
    named = {name: text for name, text in tokenizer.named_templates.items() if name != "tool_use"}
    unused = f"; not used: {', '.join(ascii(name)[1:-1][:40] for name in sorted(named))}" if named else ""
    if tokenizer.chat_template is None:
        return f"no template{unused}"
    tools = tokenizer.named_templates.get("tool_use")
    text = f"template of {len(tokenizer.chat_template):,} characters"
    return text + ("" if tools is None else f", another of {len(tools):,} for tools") + unused
