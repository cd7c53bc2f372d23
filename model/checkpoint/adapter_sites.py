"""AdapterSite: the linear layer of a model that a module of an adapter changes."""

from dataclasses import dataclass

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.peft import Adapter
from caravan.model.config import UnsupportedModel

_HUGGING_FACE_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_FUSED_MODULES = {"q": "self_attn.qkv_proj", "gate": "mlp.gate_up_proj"}


@dataclass(frozen=True)
class AdapterSite:
    """A linear layer of a model."""

    layer: int
    word: str  # of TensorNames, such as gate; of a fused tensor the first one
    source: str  # its tensor in the files
    num_interleaved_heads: int  # of a Q or K matrix whose rotary pairs stand side by side there, otherwise 0
    is_fused: bool  # Q, K and V in one tensor, or gate and up


def adapter_sites(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, AdapterSite]:
    """Return the linear layers that an adapter changes, by its names of them.

    Raises BrokenCheckpoint or UnsupportedModel unless the adapter has matrices for layers of this model, and for all
    that its configuration names.
    """
    sites = _all_sites(checkpoint)
    for module, (num_outputs, num_inputs, _) in adapter.shapes.items():
        shown = ascii(module)[1:-1][:120]
        if module not in sites:
            raise UnsupportedModel(
                f"{adapter.path} changes {shown}; {checkpoint.path} has no such linear layer in its "
                f"{checkpoint.config.num_layers} layers."
            )
        shape = checkpoint.shapes[sites[module].source]
        if (num_outputs, num_inputs) != shape:
            raise UnsupportedModel(
                f"{adapter.path} is for another model: {shown} has {num_outputs} outputs and {num_inputs} inputs, "
                f"in {checkpoint.path} {shape[0]} and {shape[1]}."
            )
    config = adapter.config
    if config.has_all_layers and config.targets is not None:
        missing = [module for module in sites if config.is_target(module) and module not in adapter.shapes]
        if missing:
            raise BrokenCheckpoint(f"{adapter.path} lacks the matrices of {missing[0]} and {len(missing) - 1} more.")
    return {module: sites[module] for module in adapter.shapes}


def linear_shapes(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Return outputs and inputs of all linear layers that an adapter can change. Raises UnsupportedModel."""
    shapes = [checkpoint.shapes[site.source] for site in _all_sites(checkpoint).values()]
    return [(num_outputs, num_inputs) for num_outputs, num_inputs in shapes]


def _all_sites(checkpoint: Checkpoint) -> dict[str, AdapterSite]:
    """Return the linear layers of a model by PEFT's names of them, which are those of the Hugging Face format."""
    if checkpoint.config.num_experts:
        raise UnsupportedModel(f"{checkpoint.path} has experts, and adapters of such models are not supported yet.")
    config, names = checkpoint.config, checkpoint.names
    heads = {"q": config.num_heads, "k": config.num_kv_heads} if checkpoint.is_interleaved else {}
    is_hugging_face = names["q"].startswith("model.layers.{}.")
    sites: dict[str, AdapterSite] = {}
    for word, module in _HUGGING_FACE_MODULES.items():
        first = {"k": "q", "v": "q", "up": "gate"}.get(word, "")
        if first and names[word] == names[first]:  # of a fused tensor
            continue
        is_fused = any(names[other] == names[word] for other in names if other != word)
        ending = _FUSED_MODULES[word] if is_fused else module
        name = names[word].removesuffix(".weight") if is_hugging_face else f"model.layers.{{}}.{ending}"
        for layer in range(config.num_layers):
            source = names[word].format(layer)
            sites[name.format(layer)] = AdapterSite(layer, word, source, heads.get(word, 0), is_fused)
    return sites
