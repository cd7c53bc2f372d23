"""caravan_build_info: the version of the server and options of the model, as labels for Prometheus."""

import platform

from prometheus_client import CollectorRegistry, Gauge


def add_build_info(
    registry: CollectorRegistry, model_name: str, *, version: str, quantization: str, kv_cache_dtype: str, device: str
) -> None:
    """Add a gauge that is always 1; the options are as the operator has set them."""
    labels = {
        "model_name": model_name,
        "version": version,
        "python_version": platform.python_version(),
        "quantization": quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "device": device,
    }
    text = "Version of the server and options of its model, as labels."
    Gauge("caravan_build_info", text, list(labels), registry=registry).labels(**labels).set(1)
