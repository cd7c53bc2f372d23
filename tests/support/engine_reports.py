"""The first message of an engine that has no model."""

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import EngineReady

READY = EngineReady(
    config=EngineConfig(num_blocks=64, max_model_len=512),
    vocab_size=1024,
    num_parameters=0,
    weight_bytes=0,
    kv_cache_bytes=4096,
    kv_cache_dtype="none",
    weights="none",
    load_seconds=0.0,
)
