"""The routes beside generation: models, probes, version, metrics, documentation."""

import asyncio
import re
import shutil
import subprocess

import httpx
import prometheus_client.openmetrics.parser as openmetrics_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import StepOutput, StepStats
from caravan.server.observe.metrics import Metrics
from tests.server.openai.api import CHAT, COMPLETIONS, MAX_MODEL_LEN, Api, answered, open_api


async def test_the_model_is_listed_under_each_of_its_names(api: Api) -> None:
    listed = answered(await api.http.get("/v1/models"))
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["fake", "org/fake-7b"]
    for entry in listed["data"]:
        assert (entry["object"], entry["root"], entry["max_model_len"]) == ("model", "fake", MAX_MODEL_LEN)
        assert isinstance(entry["created"], int)
        assert answered(await api.http.get(f"/v1/models/{entry['id']}")) == entry


async def test_probes_and_version_answer_without_work_for_the_engine(api: Api) -> None:
    assert answered(await api.http.get("/livez")) == {"status": "live"}
    for route in ("/readyz", "/health"):
        assert answered(await api.http.get(route)) == {"status": "ready"}
    assert answered(await api.http.get("/version")) == {"version": "1.2.3"}
    assert api.engine.submitted == []


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/version", "/", "/docs", "/web/style.css"])
async def test_head_is_answered_as_get(api: Api, path: str) -> None:
    got, headed = await api.http.get(path), await api.http.head(path)
    assert (headed.status_code, headed.headers["content-type"]) == (200, got.headers["content-type"])
    assert headed.headers["content-length"] == got.headers["content-length"]
    if path in ("/readyz", "/health"):
        api.engine.is_ready = False
        assert (await api.http.head(path)).status_code == 503


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions/",
        "//v1//completions",
        "/completions",
        "/completions/",
        "/v1/v1/completions",
        "/v1/v1/v1//completions/",
    ],
)
async def test_a_path_spelled_otherwise_reaches_its_route(api: Api, path: str) -> None:
    answer = await api.http.post(f"http://test{path}", json={"model": "fake", "prompt": "hi"})
    assert answered(answer)["object"] == "text_completion"
    assert api.sample("http_requests_total", route=COMPLETIONS, status="200") == 1


async def test_the_metrics_of_a_request_add_up(api: Api) -> None:
    await api.complete(prompt=["abc", "de"], n=2, max_tokens=3)
    assert api.sample("prompt_tokens_total") == 10
    assert api.sample("generation_tokens_total") == 12
    assert api.sample("request_success_total", finished_reason="length") == 4
    for histogram, count in {
        "time_to_first_token_seconds": 4,
        "inter_token_latency_seconds": 8,
        "request_time_per_output_token_seconds": 4,
        "e2e_request_latency_seconds": 4,
        "request_queue_time_seconds": 4,
        "request_prefill_time_seconds": 4,
        "request_decode_time_seconds": 4,
        "request_inference_time_seconds": 4,
        "request_prompt_tokens": 4,
        "request_generation_tokens": 4,
        "request_params_max_tokens": 4,
        "request_params_n": 1,
    }.items():
        assert api.sample(f"{histogram}_count") == count, histogram
    assert api.sample("request_params_n_sum") == 2
    assert api.sample("request_prompt_tokens_sum") == 10


def test_draft_tokens_and_accepted_draft_tokens_are_counted() -> None:
    metrics = Metrics("m", EngineConfig(num_blocks=64, max_model_len=512))
    for num_accepted in (3, 1):
        stats = StepStats(num_draft_tokens=4, num_accepted_tokens=num_accepted)
        metrics.on_step(StepOutput(outputs=[], stats=stats))
    text = metrics.exposition().decode()
    assert 'caravan_spec_decode_num_draft_tokens_total{model_name="m"} 8.0' in text
    assert 'caravan_spec_decode_num_accepted_tokens_total{model_name="m"} 4.0' in text


async def test_a_refused_request_counts_as_http_only(api: Api) -> None:
    assert (await api.http.post(COMPLETIONS, json={"model": "fake"})).status_code == 400
    assert api.sample("http_requests_total", route=COMPLETIONS, status="400") == 1
    assert api.sample("request_params_n_count") == 0
    assert api.sample("e2e_request_latency_seconds_count") == 0


async def test_labels_do_not_grow_with_what_clients_send(api: Api) -> None:
    for index in range(5):
        await api.http.get(f"/nowhere/{index}")
        await api.http.get(f"/v1/models/m{index}")
        await api.http.post(CHAT, json={"model": f"m{index}"})
    text = (await api.http.get("/metrics")).text
    routes = set(re.findall(r'caravan_http_requests_total\{.*?route="(.*?)"', text))
    assert routes == {"unmatched", "/v1/models/{name:path}", CHAT}
    assert set(re.findall(r'model_name="(.*?)"', text)) == {"fake"}


async def test_metrics_are_in_the_text_format_of_prometheus(api: Api) -> None:
    response = await api.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert families["caravan_num_requests_running"].type == "gauge"
    assert families["caravan_generation_tokens"].type == "counter"
    assert families["caravan_time_to_first_token_seconds"].type == "histogram"
    [config] = families["caravan_cache_config_info"].samples
    assert config.labels["block_size"] == "16"
    assert config.labels["num_blocks"] == str(api.engine.config.num_blocks)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_prometheus_own_linter_finds_nothing(api: Api) -> None:
    await api.complete()
    text = (await api.http.get("/metrics")).content
    command = ["promtool", "check", "metrics"]
    checked = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_metrics_are_in_openmetrics_on_request(api: Api) -> None:
    await api.complete()
    response = await api.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    # A histogram with negative bounds has no sum, which this parser wants of every histogram.
    text = "".join(line for line in response.text.splitlines(keepends=True) if "admission_wait_error" not in line)
    families = {family.name: family for family in openmetrics_parser.text_string_to_metric_families(text)}
    assert families["caravan_generation_tokens"].samples[0].value == len("Hello!") + 1
    assert families["caravan_inter_token_latency_seconds"].type == "histogram"


async def test_the_documentation_describes_the_bodies(api: Api) -> None:
    document = answered(await api.http.get("/openapi.json"))
    for path, schema in ((COMPLETIONS, "CompletionRequest"), (CHAT, "ChatRequest")):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{schema}"}
        assert "temperature" in document["components"]["schemas"][schema]["properties"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', (await api.http.get("/openapi.json")).text))
    assert references <= set(document["components"]["schemas"])
    assert (await api.http.get("/docs")).status_code == 200


@pytest.mark.parametrize("host", ["other.example", "other.example:81", "livez", ""])
async def test_threat_1_the_host_header_changes_nothing(host: str) -> None:
    async with open_api() as api:
        for path, status in (("/livez", 200), ("/v1/models", 200), ("/v1/models/", 200), ("/nowhere", 404)):
            response = await api.http.get(path, headers={"host": host}, follow_redirects=False)
            assert isinstance(response, httpx.Response)
            assert response.status_code == status


async def test_a_prefix_of_paths_is_removed_whether_a_proxy_does_it_or_not() -> None:
    async with open_api(root_path="/a/b") as api:
        for path in ("/livez", "/a/b/livez", "/a/b//livez/", "/a/b/v1/livez"):
            assert (await api.http.get(path)).status_code == (404 if "v1" in path else 200), path
        for path in ("/v1/models", "/a/b/v1/models", "/a/b/models", "/models"):
            assert (await api.http.get(path)).status_code == 200, path
        assert (await api.http.get("/a/bc/v1/models")).status_code == 404
        page = (await api.http.get("/a/b", headers={"accept": "text/html"})).text
        assert 'href="/a/b/web/theme.css"' in page
        assert 'src="/a/b/web/main.js"' in page
        assert 'href="/a/b/docs"' in page
        docs = (await api.http.get("/a/b/docs")).text
        assert '<a href="/a/b/">' in docs
        script = (await api.http.get("/a/b/web/api.js")).text
        assert 'new URL("../", import.meta.url)' in script  # all other addresses follow from where the scripts are
        guide = (await api.http.get("/a/b/web/llama2-from-scratch.html")).text
        assert '<a href="/a/b/">' in guide
        assert (await api.http.get("/openapi.json")).json()["servers"] == [{"url": "/a/b"}]
    async with open_api() as api:
        assert "servers" not in (await api.http.get("/openapi.json")).json()
