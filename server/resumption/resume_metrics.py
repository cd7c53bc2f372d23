"""Prometheus metrics of responses that clients can read again."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from caravan.server.resumption.kept_responses import KeptResponses

_PREFIX = "caravan_resumable_"


def resume_metrics(registry: CollectorRegistry, model_name: str, responses: KeptResponses) -> Counter:
    """Add the gauges of kept responses; return the counter of connections that resumed one."""
    number = Gauge(_PREFIX + "responses", "Responses that clients can read again.", ["model_name"], registry=registry)
    number.labels(model_name).set_function(lambda: responses.num_responses)
    size = Gauge(_PREFIX + "bytes", "Bytes of the events that are kept of them.", ["model_name"], registry=registry)
    size.labels(model_name).set_function(lambda: responses.num_bytes)
    text = "Connections that read such a response again."
    return Counter(_PREFIX + "reads", text, ["model_name"], registry=registry).labels(model_name)
