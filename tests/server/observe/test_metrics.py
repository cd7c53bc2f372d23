"""Metrics: names, labels and buckets that dashboards and rules depend on."""

from prometheus_client.parser import text_string_to_metric_families

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import FinishReason, SpillCounts, StepOutput, StepStats
from caravan.server.observe.choice_record import ChoiceRecord
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.vllm_names import add_vllm_names

# fmt: off
SECONDS: list[float] = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680]
PER_TOKEN: list[float] = [
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80,
]
LENGTHS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]  # up to max_model_len
BUCKETS: dict[str, list[float]] = {
    "time_to_first_token_seconds": [
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
        1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
    ],
    "inter_token_latency_seconds": PER_TOKEN,
    "request_time_per_output_token_seconds": PER_TOKEN,
    "e2e_request_latency_seconds": SECONDS,
    "request_queue_time_seconds": SECONDS,
    "request_inference_time_seconds": SECONDS,
    "request_prefill_time_seconds": SECONDS,
    "request_decode_time_seconds": SECONDS,
    "admission_wait_error_seconds": [-60, -30, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 30, 60],
    "request_prompt_tokens": LENGTHS,
    "request_generation_tokens": LENGTHS,
    "request_params_max_tokens": LENGTHS,
    "iteration_tokens": [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384],
    "request_params_n": [1, 2, 5, 10, 20],
}
# fmt: on
GAUGES: dict[str, set[str]] = {
    "num_requests_running": set(),
    "num_requests_waiting": set(),
    "kv_cache_usage_perc": set(),
    "kv_cache_blocks": {"state"},
    "kv_spill_bytes": {"state"},
    "ready": set(),
    "engine_replacing": set(),
    "queued_tokens": set(),
    "standby_ready": set(),
    "cache_config_info": {"block_size", "num_blocks", "max_batch_tokens", "max_num_seqs", "max_model_len", "num_ranks"},
}
COUNTERS: dict[str, set[str]] = {
    "prompt_tokens": set(),
    "generation_tokens": set(),
    "prefix_cache_queries": set(),
    "prefix_cache_hits": set(),
    "prefix_cache_misses": {"reason"},
    "num_preemptions": set(),
    "spec_decode_num_draft_tokens": set(),
    "spec_decode_num_accepted_tokens": set(),
    "draft_tokens": {"source"},
    "accepted_draft_tokens": {"source"},
    "draft_model_seconds": set(),
    "kv_spill_blocks": {"event"},
    "request_success": {"finished_reason"},
    "request_incomplete": {"finished_reason"},
    "ignored_fields": {"field"},
    "admission_rejections": {"reason"},
    "engine_restarts": set(),
    "engine_down_seconds": set(),
    "requests_replayed": set(),
    "http_requests": {"route", "status"},
}


def test_names_labels_and_buckets_are_stable() -> None:
    metrics = Metrics("m", EngineConfig(num_blocks=640, max_model_len=8192))
    metrics.add_ready_gauges(lambda: True, lambda: False)
    metrics.add_queue_gauge(lambda: 0)
    reasons: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")
    for reason in reasons:
        metrics.observe_end(ChoiceRecord(0, 1, 1), reason, 0.0)
    metrics.count_http("/v1/models", 200)
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    ours = {name.removeprefix("caravan_"): family for name, family in families.items() if name.startswith("caravan_")}
    for kind, expected in (("gauge", GAUGES), ("counter", COUNTERS)):
        for name, labels in expected.items():
            family = ours[name]
            assert family.type == kind, name
            for sample in family.samples:
                assert set(sample.labels) == labels | {"model_name"}, name
                assert sample.labels["model_name"] == "m"
    for name, buckets in BUCKETS.items():
        samples = [sample for sample in ours[name].samples if sample.name.endswith("_bucket")]
        assert [float(sample.labels["le"]) for sample in samples] == [*buckets, float("inf")], name
        assert all(set(sample.labels) == {"le", "model_name"} for sample in samples)
    histograms = {name for name, family in ours.items() if family.type == "histogram"}
    assert histograms == set(BUCKETS)
    others = {name for name in ours if name not in histograms and not name.endswith("_created")}
    assert others == {*GAUGES, *COUNTERS}
    for name in ("process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections"):
        assert name in families


def test_the_blocks_of_the_pool_add_up() -> None:
    metrics = Metrics("m", EngineConfig(num_blocks=64, max_model_len=512))

    def blocks() -> dict[str, float]:
        states = ("used", "cached", "free")
        found = {
            state: metrics.registry.get_sample_value("caravan_kv_cache_blocks", {"model_name": "m", "state": state})
            for state in states
        }
        return {state: value for state, value in found.items() if value is not None}

    assert blocks() == {"used": 0, "cached": 0, "free": 64}
    stats = StepStats(num_blocks=64, num_used_blocks=10, num_cached_blocks=50)
    metrics.on_step(StepOutput(outputs=[], stats=stats))
    assert blocks() == {"used": 10, "cached": 50, "free": 4}
    assert metrics.registry.get_sample_value("caravan_kv_cache_usage_perc", {"model_name": "m"}) == 10 / 64
    metrics.on_disconnect()
    assert blocks() == {"used": 0, "cached": 0, "free": 64}


def test_blocks_of_the_spill_file_are_counted_by_event_and_its_size_is_that_of_the_last_step() -> None:
    metrics = Metrics("m", EngineConfig(num_blocks=64, max_model_len=64))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"caravan_kv_spill_{name}", {"model_name": "m"} | labels)

    assert (value("blocks_total", event="read"), value("bytes", state="used")) == (0, 0)
    for counts in (
        SpillCounts(num_written=3, num_dropped=1, used_bytes=300, free_bytes=700),
        SpillCounts(num_written=2, num_read=7, num_damaged=4, used_bytes=500, free_bytes=500),
    ):
        metrics.on_step(StepOutput(outputs=[], stats=StepStats(spill=counts)))
    counted = {event: value("blocks_total", event=event) for event in ("written", "read", "dropped", "damaged")}
    assert counted == {"written": 5, "read": 7, "dropped": 1, "damaged": 4}
    assert (value("bytes", state="used"), value("bytes", state="free")) == (500, 500)
    metrics.on_disconnect()
    assert (value("bytes", state="used"), value("blocks_total", event="read")) == (0, 7)


def test_four_gauges_have_vllm_s_names_too_with_our_values() -> None:
    config = EngineConfig(num_blocks=64, max_model_len=512)
    metrics = Metrics("m", config)
    assert "vllm:" not in metrics.exposition().decode()
    add_vllm_names(metrics, "m", config)
    metrics.on_step(
        StepOutput(outputs=[], stats=StepStats(num_blocks=64, num_used_blocks=16, num_running=3, num_waiting=2))
    )
    families = text_string_to_metric_families(metrics.exposition().decode())
    found = {family.name: family for family in families if family.name.startswith("vllm:")}
    assert {name: family.samples[0].value for name, family in found.items()} == {
        "vllm:num_requests_waiting": 2,
        "vllm:num_requests_running": 3,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:cache_config_info": 1,
    }
    assert all(family.type == "gauge" for family in found.values())
    info = {"model_name": "m", "block_size": "16", "num_gpu_blocks": "64"}
    assert found.pop("vllm:cache_config_info").samples[0].labels == info
    assert all(family.samples[0].labels == {"model_name": "m"} for family in found.values())
    metrics.on_disconnect()
    assert metrics.registry.get_sample_value("vllm:num_requests_running", {"model_name": "m"}) == 0
