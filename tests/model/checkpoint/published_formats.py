"""Writers of published checkpoint formats, from the weights of a transformers Llama.

Names and orders are those of Meta's code and of llama2.c's export.py; the rows of Q and K are interleaved there.
"""

import json
import struct
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from tests.support.gguf_files import interleaved

_INTERLEAVED = ("llama", "mistral3", "smollm3", "granite")  # GGUF architectures
SPLIT_BY_COLUMNS = ("wo.weight", "w2.weight", "tok_embeddings.weight")


def meta_tensors(oracle: Any) -> dict[str, Tensor]:
    """Return the weights of a transformers Llama under Meta's names and in Meta's layout."""
    state, config = oracle.state_dict(), oracle.config
    tensors = {"tok_embeddings.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    for i in range(config.num_hidden_layers):
        theirs = f"model.layers.{i}."
        attention, feed_forward = theirs + "self_attn.", theirs + "mlp."
        tensors |= {
            f"layers.{i}.attention.wq.weight": interleaved(
                state[attention + "q_proj.weight"], config.num_attention_heads
            ),
            f"layers.{i}.attention.wk.weight": interleaved(
                state[attention + "k_proj.weight"], config.num_key_value_heads
            ),
            f"layers.{i}.attention.wv.weight": state[attention + "v_proj.weight"],
            f"layers.{i}.attention.wo.weight": state[attention + "o_proj.weight"],
            f"layers.{i}.feed_forward.w1.weight": state[feed_forward + "gate_proj.weight"],
            f"layers.{i}.feed_forward.w2.weight": state[feed_forward + "down_proj.weight"],
            f"layers.{i}.feed_forward.w3.weight": state[feed_forward + "up_proj.weight"],
            f"layers.{i}.attention_norm.weight": state[theirs + "input_layernorm.weight"],
            f"layers.{i}.ffn_norm.weight": state[theirs + "post_attention_layernorm.weight"],
        }
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write_meta(
    folder: Path, oracle: Any, *, num_shards: int = 1, splits_embedding_by_rows: bool = False, **params: Any
) -> None:
    """Write params.json and consolidated.NN.pth."""
    config = oracle.config
    fields = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": -1,
        "multiple_of": 16,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(fields | params))
    tensors = meta_tensors(oracle)
    for shard in range(num_shards):
        part = {"rope.freqs": torch.ones(4)}
        for name, tensor in tensors.items():
            by_columns = name.endswith(SPLIT_BY_COLUMNS)
            if splits_embedding_by_rows and name == "tok_embeddings.weight":
                by_columns = False
            is_whole = tensor.dim() == 1
            part[name] = (tensor if is_whole else tensor.chunk(num_shards, dim=int(by_columns))[shard]).clone()
        torch.save(part, folder / f"consolidated.{shard:02}.pth")


def write_llama2c(path: Path, oracle: Any, *, version: int, group_size: int = 16) -> None:
    """Write a .bin file of version 0, 1 or 2."""
    config, tensors = oracle.config, meta_tensors(oracle)
    is_tied = config.tie_word_embeddings
    vocab_size = config.vocab_size if is_tied or version else -config.vocab_size
    numbers = struct.pack(
        "<7i",
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        vocab_size,
        config.max_position_embeddings,
    )

    def layers(name: str) -> list[Tensor]:
        return [tensors[f"layers.{i}.{name}.weight"] for i in range(config.num_hidden_layers)]

    attention = [*layers("attention.wq"), *layers("attention.wk"), *layers("attention.wv"), *layers("attention.wo")]
    feed_forward = [*layers("feed_forward.w1"), *layers("feed_forward.w2"), *layers("feed_forward.w3")]
    embedding, norm = tensors["tok_embeddings.weight"], tensors["norm.weight"]
    output = [] if is_tied else [tensors["output.weight"]]
    if version == 0:
        table = torch.zeros(config.max_position_embeddings, config.head_dim // 2)
        floats = [embedding, *layers("attention_norm"), *attention, *layers("ffn_norm"), *feed_forward, norm]
        path.write_bytes(numbers + b"".join(map(_float_bytes, [*floats, table, table, *output])))
        return
    header = struct.pack("<Ii", 0x616B3432, version) + numbers + struct.pack("<B", is_tied)
    header += struct.pack("<i", group_size) if version == 2 else b""
    norms = [*layers("attention_norm"), *layers("ffn_norm"), norm]
    matrices = [embedding, *attention, *feed_forward, *output]
    content = header.ljust(256, b"\0") + b"".join(map(_float_bytes, norms))
    for matrix in matrices:
        content += _float_bytes(matrix) if version == 1 else _int8_bytes(matrix, group_size)
    path.write_bytes(content)


def int8_rounded(weight: Tensor, group_size: int) -> Tensor:
    """Return the weight as version 2 of llama2.c stores it: int8 with a scale for each group."""
    groups = weight.reshape(-1, group_size)
    scales = groups.abs().amax(dim=1, keepdim=True) / 127
    return ((groups / scales).round() * scales).view(weight.shape)


def _float_bytes(tensor: Tensor) -> bytes:
    return tensor.float().numpy().astype("<f4").tobytes()


def _int8_bytes(weight: Tensor, group_size: int) -> bytes:
    groups = weight.reshape(-1, group_size)
    scales = groups.abs().amax(dim=1, keepdim=True) / 127
    return (groups / scales).round().to(torch.int8).numpy().tobytes() + _float_bytes(scales)


def write_gguf(
    path: Path, oracle: Any, architecture: str, *, blocks: Any = MappingProxyType({}), **fields: object
) -> None:
    """Write a GGUF file with the names that the gguf package maps transformers' to; Q and K interleaved for some.

    `blocks` are matrices in blocks of MXFP4, by their names, with those of the experts of a layer stacked.
    """
    config = oracle.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper().replace("-", "_")], config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(oracle.model.layers[0].self_attn.head_dim)
    writer.add_value_length(oracle.model.layers[0].self_attn.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_array("tokenizer.ggml.tokens", [str(i) for i in range(config.vocab_size)])
    for name, value in fields.items():
        key = f"{architecture}.{name.replace('__', '.')}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list) and isinstance(value[0], bool):
            writer.add_array(key, value)
    state = dict(oracle.state_dict())
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if hasattr(config, "moe_intermediate_size"):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if architecture == "gpt-oss":
            _split_experts_of_gpt_oss(state)
        for name in [name for name in state if name.endswith("experts.gate_up_proj")]:
            gate, up = state.pop(name).chunk(2, dim=1)
            state |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
    for name, tensor in {**state, **blocks}.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture in _INTERLEAVED and "q_proj" in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        if architecture in _INTERLEAVED and "k_proj" in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None
        theirs += ".weight" if tensor.dim() == 3 or name.endswith("sinks") else ""
        if tensor.dtype == torch.uint8:
            writer.add_tensor(theirs, tensor.numpy(), raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(theirs, tensor.float().contiguous().numpy())
    for stem in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
        if stem in fields:
            writer.add_tensor(f"{stem}.weight", np.asarray(fields[stem], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _split_experts_of_gpt_oss(state: dict[str, Tensor]) -> None:
    """Replace the matrices [experts, inputs, outputs] by transposed ones; gate and up projection alternate in them."""
    for name in [name for name in state if ".mlp.experts." in name]:
        tensor = state.pop(name)
        rows = tensor if name.endswith("_bias") else tensor.transpose(1, 2)
        leaf = name.replace("_proj_bias", "_proj.bias")
        if "gate_up" not in name:
            state[leaf] = rows
            continue
        state |= {leaf.replace("gate_up", "gate"): rows[:, ::2], leaf.replace("gate_up", "up"): rows[:, 1::2]}
