"""Write the model of a GGUF file in the formats of other servers, so that all have the same weights.

`python -m benchmarks.peer_models MODEL.gguf FOLDER [--llama-cpp LIBRARIES]` writes FOLDER/huggingface (bfloat16,
safetensors) and FOLDER/model-BF16.gguf, and with llama.cpp's libraries -Q8_0 and -Q4_0. The vocabulary must be
SmolLM's.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from benchmarks.llama_cpp import load_llama_cpp, quantize
from caravan.model.checkpoint.checkpoint import Checkpoint, read_weights
from caravan.model.checkpoint.gguf import open_gguf
from caravan.model.checkpoint.gguf_header import read_gguf_header
from caravan.model.tokenizer.loader import load_tokenizer

_QUANTIZED = ("Q8_0", "Q4_0")


def write_huggingface(model: Path, folder: Path) -> None:
    """Write config, weights in bfloat16, tokenizer and chat template of a Llama."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, metadata = open_gguf(model), read_gguf_header(model).metadata
    save_file(dict(_huggingface_weights(checkpoint)), folder / "model.safetensors", metadata={"format": "pt"})
    config, tokenizer = checkpoint.config, load_tokenizer(model)
    (eos, *_) = [token_id for token_id in tokenizer.eos_token_ids if tokenizer.eos_token == _texts(metadata)[token_id]]
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos,
        "torch_dtype": "bfloat16",
    }
    _write_json(folder / "config.json", fields)
    _write_json(folder / "generation_config.json", {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos})
    _tokenizer(metadata).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "unk_token": tokenizer.bos_token,
        "pad_token": tokenizer.eos_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position,
        "chat_template": tokenizer.chat_template,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def write_gguf(model: Path, path: Path, kind: str) -> None:
    """Write the model with its matrices as `kind`, such as BF16; all else is copied."""
    reader = gguf.GGUFReader(model)
    matrix_type = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, _text(reader, "general.architecture"))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            sub_type = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim > 1:
            writer.add_tensor(tensor.name, gguf.quantize(values, matrix_type), raw_dtype=matrix_type)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _huggingface_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights with transformers' names; ours has some of them joined."""
    config = checkpoint.config
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    parts_of = {
        "attention.qkv": (("self_attn.q_proj", q_rows), ("self_attn.k_proj", kv_rows), ("self_attn.v_proj", kv_rows)),
        "attention.output": (("self_attn.o_proj", config.hidden_size),),
        "attention_norm": (("input_layernorm", config.hidden_size),),
        "feed_forward_norm": (("post_attention_layernorm", config.hidden_size),),
        "feed_forward.gate_up": (
            ("mlp.gate_proj", config.intermediate_size),
            ("mlp.up_proj", config.intermediate_size),
        ),
        "feed_forward.down": (("mlp.down_proj", config.hidden_size),),
    }
    top = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for name, weight in read_weights(checkpoint, torch.bfloat16):
        assert isinstance(weight, Tensor)
        if not name.startswith("layers."):
            yield top.get(name, "lm_head.weight"), weight
            continue
        _, layer, rest = name.split(".", 2)
        word, _, kind = rest.rpartition(".")
        parts = torch.split(weight, [rows for _, rows in parts_of[word]])
        for (their_name, _), part in zip(parts_of[word], parts, strict=True):
            yield f"model.layers.{layer}.{their_name}.{kind}", part.clone()


def _tokenizer(metadata: Any) -> Tokenizer:
    """Return SmolLM's tokenizer: single digits, then GPT-2's words."""
    if metadata["tokenizer.ggml.pre"] != "smollm":
        raise SystemExit(f"The vocabulary is {metadata['tokenizer.ggml.pre']}; this script writes smollm only.")
    texts = _texts(metadata)
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(texts, types, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def _texts(metadata: Any) -> list[str]:
    texts: list[str] = metadata["tokenizer.ggml.tokens"]
    return texts


def _text(reader: gguf.GGUFReader, name: str) -> str:
    field = reader.get_field(name)
    assert field is not None
    return str(field.contents())


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}, indent=2) + "\n")


def main() -> None:
    """Write all forms of the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp's libraries, which write Q8_0 and Q4_0")
    arguments = parser.parse_args()
    write_huggingface(arguments.model, arguments.folder / "huggingface")
    write_gguf(arguments.model, arguments.folder / "model-BF16.gguf", "BF16")
    if arguments.llama_cpp:
        llama_cpp = load_llama_cpp(arguments.llama_cpp)
        for kind in _QUANTIZED:
            source, target = (arguments.folder / f"model-{name}.gguf" for name in ("BF16", kind))
            quantize(llama_cpp, source, target, kind, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
