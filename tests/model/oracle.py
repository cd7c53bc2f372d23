"""transformers as the oracle: the same weights there, and our logits at every position to compare."""

from pathlib import Path

import torch
import transformers

from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.scheduler.batch import BatchBuilder
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import kv_dtype_of

BLOCK_SIZE = 16


def transformers_twin(model: Llama) -> transformers.LlamaForCausalLM:
    """Return transformers' Llama with the same weights."""
    config = model.config
    twin_config = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )
    twin = transformers.LlamaForCausalLM(twin_config).eval()
    own = model.state_dict()
    weights = {"model.embed_tokens.weight": own["embedding.weight"], "model.norm.weight": own["norm.weight"]}
    head = "embedding.weight" if config.tie_embeddings else "output.weight"
    weights["lm_head.weight"] = own[head]
    for i in range(config.num_layers):
        theirs, ours = f"model.layers.{i}.", f"layers.{i}."
        rows = [config.num_heads * config.head_dim, *[config.num_kv_heads * config.head_dim] * 2]
        q, k, v = own[ours + "attention.qkv.weight"].split(rows)
        gate, up = own[ours + "feed_forward.gate_up.weight"].chunk(2)
        weights |= {
            theirs + "self_attn.q_proj.weight": q,
            theirs + "self_attn.k_proj.weight": k,
            theirs + "self_attn.v_proj.weight": v,
            theirs + "self_attn.o_proj.weight": own[ours + "attention.output.weight"],
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
            theirs + "mlp.down_proj.weight": own[ours + "feed_forward.down.weight"],
            theirs + "input_layernorm.weight": own[ours + "attention_norm.weight"],
            theirs + "post_attention_layernorm.weight": own[ours + "feed_forward_norm.weight"],
        }
    twin.load_state_dict(weights)
    return twin


def logits_of_every_position(model: Llama, token_ids: list[int]) -> torch.Tensor:
    """Return our logits at each position of one text, [len, vocab_size], from a single prefill."""
    num_blocks = -(-len(token_ids) // BLOCK_SIZE)
    cache = KVCache(model.config, num_blocks, BLOCK_SIZE, kv_dtype_of(model), torch.device("cpu"))
    sequence = Sequence.of(make_request(0, token_ids))
    sequence.block_table = list(range(num_blocks))[::-1]  # any order of blocks will do
    builder = BatchBuilder(1, num_blocks, BLOCK_SIZE, torch.device("cpu"))
    batch = builder.build([ScheduledSequence(sequence, len(token_ids))])
    everywhere = torch.arange(len(token_ids))
    return model(type(batch)(**{**vars(batch), "wanted_rows": everywhere}), cache)


def load_checkpoint(path: Path, dtype: torch.dtype = torch.float32, max_position: int | None = None) -> Llama:
    """Return the model at `path`; it can run what it was trained for by default."""
    checkpoint = open_checkpoint(path)
    return load_model(checkpoint, dtype, torch.device("cpu"), max_position or checkpoint.config.max_position)
