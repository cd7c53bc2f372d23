"""Tracer: an OpenTelemetry span for each finished request.

Names follow the OpenTelemetry semantic conventions for generative AI. Spans contain no text of prompts or responses.
"""

import logging
import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from caravan.server.observe.http_record import HttpRecord
from caravan.server.observe.request_record import RequestRecord

if TYPE_CHECKING:  # an optional dependency
    from opentelemetry.sdk.trace import TracerProvider

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")  # OpenTelemetry's variables

_PROTOCOL = "http/protobuf"
_OPERATIONS = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/responses": "chat",
        "/v1/messages": "chat",
        "/v1/completions": "text_completion",
        "/v1/embeddings": "embeddings",
        "/v1/decisions": "chat",
        "/v1/systemone": "chat",
        "/v1/score": "chat",
        "/v1/rerank": "chat",
        "/api/chat": "chat",
        "/api/generate": "text_completion",
        "/api/embed": "embeddings",
        "/api/embeddings": "embeddings",
    }
)
# The child spans of a request: name, first event and last event.
_PHASES = (("queue", "queued", "joined"), ("prefill", "joined", "first token"), ("decode", "first token", "finished"))
_MAX_CHOICES = 64  # of a request that have child spans
_SPAN_EVENTS = frozenset(
    {"waits", "joined", "preempted", "engine replaced", "model loaded"}
)  # also added as span events

logger = logging.getLogger(__name__)


class Tracer:
    """Creates the spans of finished requests from their records."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("caravan")

    def trace(self, http: HttpRecord, record: RequestRecord) -> None:
        """Pass the spans of a request to the exporter, which sends them in a background thread."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({"traceparent": http.trace_parent})
        arrived_at = record.arrived_at_unix_seconds
        operation = _OPERATIONS.get(http.route, "text_completion")
        span = self._tracer.start_span(
            f"{operation} {record.model_name}",
            parent,
            SpanKind.SERVER,
            _attributes(operation, http, record),
            start_time=_nanoseconds(arrived_at),
        )
        events = record.explanation().timeline
        for event in events:
            if event["event"] in _SPAN_EVENTS:
                facts = {f"caravan.{name}": value for name, value in event.items() if name not in ("at_ms", "event")}
                span.add_event(event["event"], facts, _nanoseconds(arrived_at, event["at_ms"]))
        context = set_span_in_context(span, parent)
        for name, attributes, start_ms, end_ms in _phases(events):
            phase = self._tracer.start_span(
                name, context, SpanKind.INTERNAL, attributes, start_time=_nanoseconds(arrived_at, start_ms)
            )
            phase.end(_nanoseconds(arrived_at, end_ms))
        if http.status >= 500 or "error" in record.finish_reasons():
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", str(http.status) if http.status >= 500 else "generation_failed")
        span.end(_nanoseconds(time.time()))

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


def make_tracer(environ: Mapping[str, str] = os.environ) -> Tracer | None:
    """Return a tracer configured by OpenTelemetry's variables; None if they are unset or the extra is missing."""
    if not any(environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("%s is set, but tracing requires the extra: pip install 'caravan-llm[otel]'", ENDPOINTS[0])
        return None
    protocol = next(filter(None, map(environ.get, _PROTOCOLS)), _PROTOCOL)
    if protocol != _PROTOCOL:
        logger.warning("Spans are sent as %s; the protocol %s is not supported.", _PROTOCOL, protocol)
    resource = Resource.create()  # reads OpenTelemetry's variables
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "caravan"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)


def _attributes(operation: str, http: HttpRecord, record: RequestRecord) -> dict[str, Any]:
    """Return the attributes of a request's span."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "caravan",
        "gen_ai.request.model": record.model_name,
        "gen_ai.response.model": record.model_name,
        "gen_ai.response.id": record.response_id,
        "gen_ai.response.finish_reasons": record.finish_reasons(),
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
        "http.request.method": http.method,
        "http.route": http.route,
        "http.response.status_code": http.status,
        "caravan.request_id": http.request_id,
    }
    first_token = record.first_seconds("first token")
    if first_token is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = first_token
    if record.params is not None:
        attributes |= {
            "gen_ai.request.max_tokens": record.params.max_tokens,
            "gen_ai.request.temperature": record.params.temperature,
            "gen_ai.request.top_p": record.params.top_p,
            "gen_ai.request.top_k": record.params.top_k,
            "gen_ai.request.presence_penalty": record.params.presence_penalty,
            "gen_ai.request.frequency_penalty": record.params.frequency_penalty,
        }
    return attributes


def _phases(events: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], float, float]]:
    """Return name, attributes, start and end (ms) of each completed phase of the first choices."""
    first: dict[tuple[int, str], float] = {}
    for event in events:
        if "choice" in event:
            first.setdefault((event["choice"], event["event"]), event["at_ms"])
    choices = sorted({choice for choice, _ in first})[:_MAX_CHOICES]
    return [
        (name, {"caravan.choice": choice}, first[choice, start], first[choice, end])
        for choice in choices
        for name, start, end in _PHASES
        if (choice, start) in first and (choice, end) in first
    ]


def _nanoseconds(unix_seconds: float, later_ms: float = 0.0) -> int:
    return int(1e9 * unix_seconds + 1e6 * later_ms)
