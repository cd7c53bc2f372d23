"""Tracer: a span for each request that has ended, for whoever collects them with OpenTelemetry.

Names follow OpenTelemetry's semantic conventions for generative AI. Nothing of a prompt or an answer is in a span.
"""

import logging
import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from caravan.server.observe.exchange import Exchange
from caravan.server.observe.request_end import RequestEnd

if TYPE_CHECKING:  # an extra: without it there are no spans
    from opentelemetry.sdk.trace import TracerProvider

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")  # OpenTelemetry's own variables

_PROTOCOL = "http/protobuf"
_OPERATIONS = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/responses": "chat",
        "/v1/completions": "text_completion",
        "/v1/embeddings": "embeddings",
    }
)
# The spans inside that of a request: from one moment of a choice to another.
_PHASES = (("queue", "queued", "joined"), ("prefill", "joined", "first token"), ("decode", "first token", "finished"))
_MAX_CHOICES = 64  # of a request, that have spans of their own
_TOLD = frozenset({"waits", "joined", "preempted", "engine replaced"})  # moments that are events of the span

logger = logging.getLogger(__name__)


class Tracer:
    """Makes the spans of requests from their stories, when they have ended."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("caravan")

    def trace(self, exchange: Exchange, end: RequestEnd) -> None:
        """Hand the spans of a request to the exporter, which sends them from a thread of its own."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({"traceparent": exchange.trace_parent})
        arrived_at = end.story.arrived_at_unix_seconds
        operation = _OPERATIONS.get(exchange.route, "text_completion")
        span = self._tracer.start_span(
            f"{operation} {end.model_name}",
            parent,
            SpanKind.SERVER,
            _attributes(operation, exchange, end),
            start_time=_nanoseconds(arrived_at),
        )
        moments = end.story.written()["timeline"]
        for moment in moments:
            if moment["event"] in _TOLD:
                facts = {f"caravan.{name}": value for name, value in moment.items() if name not in ("at_ms", "event")}
                span.add_event(moment["event"], facts, _nanoseconds(arrived_at, moment["at_ms"]))
        context = set_span_in_context(span, parent)
        for name, attributes, start_ms, end_ms in _phases(moments):
            phase = self._tracer.start_span(
                name, context, SpanKind.INTERNAL, attributes, start_time=_nanoseconds(arrived_at, start_ms)
            )
            phase.end(_nanoseconds(arrived_at, end_ms))
        if exchange.status >= 500 or "error" in end.story.finish_reasons():
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", str(exchange.status) if exchange.status >= 500 else "generation_failed")
        span.end(_nanoseconds(time.time()))

    def close(self) -> None:
        """Send what is not sent yet."""
        self._provider.shutdown()


def make_tracer(environ: Mapping[str, str] = os.environ) -> Tracer | None:
    """Return a tracer that sends to where OpenTelemetry's variables say; None if they do not, or without the extra."""
    if not any(environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("%s is set, but nothing is traced without: pip install 'caravan-llm[otel]'", ENDPOINTS[0])
        return None
    protocol = next(filter(None, map(environ.get, _PROTOCOLS)), _PROTOCOL)
    if protocol != _PROTOCOL:
        logger.warning("Spans are sent as %s, not as %s: the other form is not built in.", _PROTOCOL, protocol)
    resource = Resource.create()  # from OpenTelemetry's variables
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "caravan"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)


def _attributes(operation: str, exchange: Exchange, end: RequestEnd) -> dict[str, Any]:
    """Return the attributes of a request's span."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "caravan",
        "gen_ai.request.model": end.model_name,
        "gen_ai.response.model": end.model_name,
        "gen_ai.response.id": end.story.answer_id,
        "gen_ai.response.finish_reasons": end.story.finish_reasons(),
        "gen_ai.usage.input_tokens": end.num_prompt_tokens,
        "gen_ai.usage.output_tokens": end.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": end.num_cached_tokens,
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "http.response.status_code": exchange.status,
        "caravan.request_id": exchange.request_id,
    }
    first_token = end.story.first_seconds("first token")
    if first_token is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = first_token
    if end.params is not None:
        attributes |= {
            "gen_ai.request.max_tokens": end.params.max_tokens,
            "gen_ai.request.temperature": end.params.temperature,
            "gen_ai.request.top_p": end.params.top_p,
            "gen_ai.request.top_k": end.params.top_k,
            "gen_ai.request.presence_penalty": end.params.presence_penalty,
            "gen_ai.request.frequency_penalty": end.params.frequency_penalty,
        }
    return attributes


def _phases(moments: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], float, float]]:
    """Return name, attributes, start and end (ms) of each phase that one of the first choices got through."""
    first: dict[tuple[int, str], float] = {}
    for moment in moments:
        if "choice" in moment:
            first.setdefault((moment["choice"], moment["event"]), moment["at_ms"])
    choices = sorted({choice for choice, _ in first})[:_MAX_CHOICES]
    return [
        (name, {"caravan.choice": choice}, first[choice, start], first[choice, end])
        for choice in choices
        for name, start, end in _PHASES
        if (choice, start) in first and (choice, end) in first
    ]


def _nanoseconds(unix_seconds: float, later_ms: float = 0.0) -> int:
    return int(1e9 * unix_seconds + 1e6 * later_ms)
