"""Spans of requests, as a collector receives them."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from caravan.server.observe.http_record import HttpRecord
from caravan.server.observe.tracing import make_tracer
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, CHAT_ML, a_chat, open_api
from tests.support.http_server import QuietHandler, serving
from tests.support.running_server import running_server
from tests.support.waiting import eventually

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "canary-7351"


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Give the address of a collector, and all bodies that it gets."""
    bodies: list[bytes] = []

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

    with serving(Handler) as url:
        yield url, bodies


def spans_of(bodies: list[bytes]) -> list[Any]:
    exports = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    return [
        span
        for export in exports
        for of_resource in export.resource_spans
        for scope in of_resource.scope_spans
        for span in scope.spans
    ]


def attributes_of(span: Any) -> dict[str, Any]:
    values = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        values[attribute.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return values


@pytest.mark.slow
def test_a_collector_gets_the_spans_of_a_request_under_its_clients_trace(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (url, bodies):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as server:
            headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "x-request-id": "mine"}
            body = {"model": "tiny", "prompt": CANARY, "max_tokens": 5, "min_tokens": 5, "temperature": 0.5}
            answer = server.http.post("/v1/completions", json=body, headers=headers).json()
            server.http.get("/readyz")
            eventually(lambda: len(spans_of(bodies)) >= 4)
    spans = {span.name: span for span in spans_of(bodies)}
    assert set(spans) == {"text_completion tiny", "queue", "prefill", "decode"}
    whole = spans["text_completion tiny"]
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    found = attributes_of(whole)
    assert found["gen_ai.operation.name"] == "text_completion"
    assert found["gen_ai.response.id"] == answer["id"]
    assert found["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 5
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["gen_ai.request.temperature"] == 0.5
    assert found["caravan.request_id"] == "mine"
    assert 0 < found["gen_ai.response.time_to_first_chunk"] < 60
    assert "joined" in [event.name for event in whole.events]
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
    assert spans["decode"].end_time_unix_nano <= whole.end_time_unix_nano
    assert CANARY.encode() not in b"".join(bodies)


@pytest.mark.slow
def test_a_server_without_a_reachable_collector_works(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # refuses
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as server:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 5}
        assert server.http.post("/v1/completions", json=body).status_code == 200
        server.process.terminate()
        assert server.process.wait(60) == 0


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "caravan"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,deployment.environment.name=test"}, "theirs"),
    ],
)
def test_spans_have_the_service_name_of_opentelemetrys_variables(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    tracer = make_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} | variables)
    assert tracer is not None
    attributes = tracer._provider.resource.attributes
    tracer.close()
    assert attributes["service.name"] == name
    assert attributes.get("deployment.environment.name") == ("test" if name == "theirs" else None)
    assert not caplog.messages


def test_an_unsupported_protocol_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    tracer = make_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert tracer is not None
    tracer.close()
    assert "http/protobuf; the protocol grpc is not supported" in caplog.text


def test_nothing_is_traced_without_an_endpoint() -> None:
    assert make_tracer({}) is None
    assert make_tracer({"OTEL_SERVICE_NAME": "x"}) is None


@pytest.mark.parametrize(("path", "operation"), [("/v1/completions", "text_completion"), (CHAT, "chat")])
async def test_each_finished_request_is_a_span_with_its_phases(
    path: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (url, bodies):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        tracer = make_tracer()
        assert tracer is not None
        records: list[HttpRecord] = []
        template = ChatTemplate(CHAT_ML, "", "")
        try:
            async with open_api(chat_template=template, on_response=records.append) as api:
                body = a_chat(CANARY) if path == CHAT else {"model": "fake", "prompt": CANARY}
                headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
                response = (await api.http.post(path, json=body, headers=headers)).json()
            (record,) = records
            assert record.generation is not None
            tracer.trace(record, record.generation)
            tracer.trace(replace(record, status=503, trace_parent=""), record.generation)
        finally:
            template.close()
            await asyncio.to_thread(tracer.close)
    spans = spans_of(bodies)
    answered, failed = (span for span in spans if span.name == f"{operation} fake")
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    found = attributes_of(answered)
    assert found["gen_ai.response.id"] == response["id"]
    assert found["gen_ai.usage.output_tokens"] == response["usage"]["completion_tokens"]
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert "error.type" not in found
    assert failed.parent_span_id == b""
    assert attributes_of(failed)["error.type"] == "503"
    phases = [span for span in spans if span.parent_span_id == answered.span_id]
    assert {span.name for span in phases} >= {"decode"}
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in phases)
    assert CANARY.encode() not in b"".join(bodies)


def test_a_missing_extra_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert make_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) is None
    assert "pip install 'caravan-llm[otel]'" in caplog.text
