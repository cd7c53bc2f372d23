"""ModelConfig: the numbers that define one Llama."""

from collections.abc import Mapping
from dataclasses import dataclass

from model.checkpoint import BrokenCheckpoint
from model.checkpoint.gguf_header import GgufHeader


class UnsupportedModel(ValueError):
    """The files describe a model this version cannot run; the message says which part."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a Llama-family model (Llama 2, arXiv:2307.09288, section 2.2).

    num_kv_heads = num_heads is multi-head attention (MHA), 1 is multi-query attention
    (MQA, arXiv:1911.02150), anything between is grouped-query attention (GQA, arXiv:2305.13245).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # width inside the feed-forward network
    num_layers: int
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads, each shared by num_heads / num_kv_heads query heads
    head_dim: int
    max_position: int  # longest context the model was trained for, in tokens
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False  # the output head is the embedding matrix

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise UnsupportedModel(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_position < 1:
            raise UnsupportedModel(f"max_position is {self.max_position}; it must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModel(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})."
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise UnsupportedModel(f"head_dim is {self.head_dim}; rotary embeddings turn pairs, so it must be even.")
        if not self.rms_norm_eps > 0 or not self.rope_theta > 0:
            raise UnsupportedModel("rms_norm_eps and rope_theta must be positive.")


def config_from_gguf(header: GgufHeader) -> ModelConfig:
    """Return the architecture that the metadata of a GGUF file describe.

    Raises UnsupportedModel for another architecture and for parts of it that are not supported, BrokenCheckpoint for
    metadata that are missing or of the wrong type. Source of the keys and their defaults: ggml's docs/gguf.md.
    """
    fields = _GgufFields(header)
    architecture = header.metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModel(f"{header.path} is a model of kind {ascii(architecture)[:80]}; supported is 'llama'.")
    if fields.integer("llama.expert_count", 0) > 0:
        raise UnsupportedModel(f"{header.path} holds a mixture of experts; supported are dense models.")
    scaling = header.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensors:
        raise UnsupportedModel(f"{header.path} wants its rotary embeddings scaled, which is not supported.")
    if fields.integer("split.count", 1) > 1:
        raise UnsupportedModel(f"{header.path} is one part of several. Merge them into one file first.")
    num_heads = fields.integer("llama.attention.head_count")
    hidden_size = fields.integer("llama.embedding_length")
    head_dim = fields.integer("llama.attention.key_length", hidden_size // max(num_heads, 1))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if fields.integer(key, head_dim) != head_dim:
            raise UnsupportedModel(f"{header.path}: {key} is {header.metadata[key]}; it must be head_dim, {head_dim}.")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise BrokenCheckpoint(f"{header.path} has no vocabulary (tokenizer.ggml.tokens).")
    return ModelConfig(
        vocab_size=len(tokens),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("llama.feed_forward_length"),
        num_layers=fields.integer("llama.block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position=fields.integer("llama.context_length"),
        rope_theta=fields.number("llama.rope.freq_base", 10_000.0),
        rms_norm_eps=fields.number("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in header.tensors,
    )


class _GgufFields:
    """Typed access to metadata; without a default a field must be there."""

    def __init__(self, header: GgufHeader) -> None:
        self._path = header.path
        self._metadata: Mapping[str, object] = header.metadata

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(key, value, "a number")
        return float(value)

    def _wrong(self, key: str, value: object, kind: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self._path}: {key} is {ascii(value)[:24]}; it must be {kind}.")
