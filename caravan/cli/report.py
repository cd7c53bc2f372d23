"""The reports of `caravan inspect` and `caravan plan`, made without reading the weights."""

import functools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Literal

from caravan.model.backend import choose_backend
from caravan.model.checkpoint.checkpoint import Checkpoint, num_parameters, weight_parts
from caravan.model.checkpoint.experts import num_read_parameters
from caravan.model.config import ModelConfig
from caravan.model.kv_cache import POOL_DTYPES, KVDtype, kv_bytes_per_token
from caravan.model.loader import open_checkpoint
from caravan.model.rope_scaling import RopeScaling
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.engine_plan import CPU_DEFAULTS, GPU_DEFAULTS, plan_engine, standby_bytes
from caravan.scheduler.memory import gpu_step_bytes
from caravan.scheduler.model_costs import ModelCosts, model_costs
from caravan.scheduler.rank_cores import numa_nodes
from caravan.scheduler.rank_memory import usable_bytes

Row = tuple[str, str]
_BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2}


def inspect_model(path: Path, adapter_path: Path | None = None) -> list[Row]:
    """Return the architecture of a model and its memory cost, perhaps with an adapter merged into its weights.

    Raises as open_checkpoint does for an unsupported one.
    """
    checkpoint = open_checkpoint(path, adapter_path)
    config = checkpoint.config
    count = num_parameters(checkpoint)
    backend = choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=EngineLimits().block_size)
    return [
        ("Model", str(path)),
        ("Format", checkpoint.format),
        ("Architecture", checkpoint.architecture),
        ("Stored as", ", ".join(sorted(checkpoint.stored_types))),
        ("Parameters", f"{count:,}{_for_a_token(config, count)}"),
        ("Layers", f"{config.num_layers}"),
        ("Hidden size", f"{config.hidden_size:,}, {config.intermediate_size:,} inside {_networks(config)}"),
        *_experts(config),
        ("Heads", f"{config.num_heads} of size {config.head_dim}"),
        ("KV heads", f"{config.num_kv_heads} ({_kind_of_attention(config)})"),
        ("Ranks", f"at most {1 if config.parts_of_one_rank() else config.num_heads:,} (--tensor-parallel)"),
        ("Attention", _attention(config)),
        *_factors(config),
        ("RoPE", f"theta {config.rope_theta:g}, {_scaling(config.rope_scaling)}{_window_rope(config)}"),
        ("Context", f"{config.max_position:,} tokens"),
        ("Vocabulary", f"{config.vocab_size:,} tokens, {'tied' if config.tie_embeddings else 'untied'} output head"),
        *_blocks(checkpoint),
        *([("LoRA", checkpoint.merged.text)] if checkpoint.merged is not None else []),
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
    adapter_path: Path | None = None,
    gpu: str | None = None,
    num_ranks: int = 1,
    num_nodes: int | None = None,
) -> list[Row]:
    """Return how many requests fit into `memory_bytes`, computed as the engine does when it allocates memory.

    With the name of a GPU, its memory is planned as an engine on a GPU does: the pool gets more of it, and a step more
    sequences and tokens. The weights and the KV cache of a draft model at `draft_path` are counted, too. With
    `num_ranks` above 1 the memory is divided between ranks; num_nodes, of NUMA, is by default that of this machine.
    Raises ValueError, with the way out, when the model or the limits do not fit.
    """
    costs = model_costs(
        path,
        draft_path,
        adapter_path,
        dtype=dtype,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        block_size=limits.block_size,
        is_gpu=gpu is not None,
        num_ranks=num_ranks,
    )
    config, backend, draft = costs.checkpoint.config, costs.backend, costs.draft
    bytes_per_token, weight_bytes = costs.token_bytes, costs.weight_bytes
    drafts: list[Row] = []
    if draft is not None:
        share = f"{draft.token_bytes:,} of the {bytes_per_token:,} bytes of a token in the KV pool"
        drafts = [("Draft", f"{draft.weight_bytes / 1e6:,.0f} MB, {draft.backend.text}; {share}")]
    if weight_bytes > memory_bytes:
        way_out = f"{'Raise --memory' if gpu is None else 'Choose another --device'}, or set --quantization."
        raise ValueError(
            f"The weights take {weight_bytes:,} bytes, more than the {memory_bytes:,} available. {way_out}"
        )
    step_bytes = functools.partial(gpu_step_bytes, config, None if draft is None else draft.checkpoint.config)
    engine = plan_engine(
        limits,
        kv_bytes_per_token=bytes_per_token,
        max_position=config.max_position,
        free_memory_bytes=usable_bytes(
            [(memory_bytes - weight_bytes, [*range(costs.num_ranks)])], costs.rank_token_bytes
        ),
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
        *_weights_of_a_step(costs, at_once),
        *drafts,
        *(standby if limits.has_standby else []),
        *_ranks(costs, engine.num_tokens, num_nodes if num_nodes is not None else len(numa_nodes()), gpu),
        ("KV pool", f"{engine.num_tokens:,} tokens in {engine.num_blocks:,} blocks of {engine.block_size} "
         f"({pool_bytes / 1e6:,.0f} MB) in {_name(costs.kv_dtype)}"),
        ("Capacity", f"{fits:,} requests of {length:,} tokens ({prompt_tokens:,} prompt, {output_tokens:,} output)"),
        ("Batch", f"{at_once:,} requests run, the others wait (max_num_seqs {engine.max_num_seqs})"),
        ("Prefill", f"{steps:,} steps of {engine.max_batch_tokens} tokens for the prompts of the batch"),
        ("Limits", f"max_model_len {engine.max_model_len:,}, max_batch_tokens {engine.max_batch_tokens:,}"),
    ]  # fmt: skip


def _ranks(costs: ModelCosts, num_tokens: int, num_nodes: int, gpu: str | None) -> list[Row]:
    """Return what each rank needs, and whether ranks help on a machine with num_nodes NUMA nodes."""
    num_ranks = costs.num_ranks
    if gpu is not None or (num_ranks == 1 and num_nodes == 1):
        return []
    if num_ranks == 1:
        return [("Ranks", f"1; --tensor-parallel {num_nodes} uses the memory of all {num_nodes} NUMA nodes at once")]
    pool_bytes = num_tokens * max(costs.rank_token_bytes)
    use = f"{num_nodes} NUMA nodes, used at once" if num_nodes > 1 else "one NUMA node, where ranks bring nothing"
    return [
        ("Ranks", f"{num_ranks}, each with up to {max(costs.rank_weight_bytes) / 1e6:,.0f} MB of weights and "
         f"{pool_bytes / 1e6:,.0f} MB of the KV pool"),
        ("Machine", use),
    ]  # fmt: skip


def _weights_of_a_step(costs: ModelCosts, num_requests: int) -> list[Row]:
    """Return how much of the weights one token and a step of several read; no row if it is all of them."""
    config, count = costs.checkpoint.config, num_parameters(costs.checkpoint)
    if not config.num_experts:
        return []
    one, several = (
        f"{costs.backend.weight_bytes * num_read_parameters(config, count, num_tokens) / count / 1e6:,.0f} MB"
        for num_tokens in (1, num_requests)
    )
    text = f"a token reads about {one} of the weights, {num_requests:,} in a step {several} if all are as likely"
    return [("Experts", f"{text}; all must be in memory")]


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


def _networks(config: ModelConfig) -> str:
    return "each expert" if config.num_experts else "the feed-forward network"


def _for_a_token(config: ModelConfig, count: int) -> str:
    return f", {num_read_parameters(config, count, 1):,} of them for a token" if config.num_experts else ""


def _experts(config: ModelConfig) -> list[Row]:
    """Return how many experts there are; no row for a model without."""
    if not config.num_experts:
        return []
    text = f"{config.num_experts} in each layer, {config.num_chosen_experts} for a token"
    if config.normalizes_expert_weights:
        text += ", their weights add up to 1"
    if config.has_expert_bias:
        text += ", with biases"
    if config.swiglu_limit is not None:
        text += f", SwiGLU clamped to {config.swiglu_limit:g}"
    return [("Experts", text)]


def _attention(config: ModelConfig) -> str:
    parts = []
    if config.has_attention_sinks:
        parts.append("a sink for each head")
    if config.has_qkv_bias:
        parts.append("biases")
    if config.has_query_key_norm and not config.query_key_norm_spans_heads:
        parts.append("query and key norms")
    if config.sliding_window is not None:
        layers = _layers_with_window(config)
        parts.append(f"a window of {config.sliding_window:,} tokens{layers}")
    if config.layers_without_rope:
        parts.append(f"{len(config.layers_without_rope)} layers without RoPE")
    if config.rotary_dim is not None:
        parts.append(f"{config.rotary_dim} of {config.head_dim} dimensions of a head rotated")
    if config.query_key_norm_spans_heads:
        parts.append("query and key norms over all heads")
    if config.attention_temperature_scale:
        parts.append("queries scaled by position")
    if config.attention_multiplier is not None:
        parts.append(f"scores multiplied by {config.attention_multiplier:g}")
    return f"causal, with {' and '.join(parts)}" if parts else "causal"


def _layers_with_window(config: ModelConfig) -> str:
    num_full = len(config.full_layers)
    if config.full_layers == tuple(range(num_full)):
        return f" from layer {num_full} on" if num_full else ""
    return f" in {config.num_layers - num_full} of {config.num_layers} layers"


def _factors(config: ModelConfig) -> list[Row]:
    """Return the factors of embeddings and logits, and the soft caps; no row without."""
    factors = []
    if config.embedding_multiplier != 1 or config.logits_scaling != 1:
        factors.append(f"embeddings times {config.embedding_multiplier:g}")
        factors.append(f"logits divided by {config.logits_scaling:g}")
    caps = (("scores", config.attention_soft_cap), ("logits", config.logit_soft_cap))
    factors += [f"{name} capped at {cap:g}" for name, cap in caps if cap is not None]
    return [("Factors", ", ".join(factors))] if factors else []


def _window_rope(config: ModelConfig) -> str:
    theta = config.window_rope_theta
    return "" if theta is None else f"; with a window theta {theta:g}, not scaled"


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
