"""Metrics: the server's Prometheus metrics."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest
from typing_extensions import override

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import FinishReason, StepOutput, StepStats
from caravan.server.engine.listener import EngineListener
from caravan.server.observe import buckets
from caravan.server.observe.choice_record import ChoiceRecord
from caravan.server.observe.histogram import TokenHistogram
from caravan.server.observe.key_usage import KeyUsage
from caravan.server.observe.prefix_misses import PrefixMissCounter
from caravan.server.observe.spill_metrics import SpillMetrics

_PREFIX = "caravan_"

Rejection = Literal["queue_full", "queue_tokens", "wait", "deadline", "body_memory", "resumable_responses"]
REJECTIONS: tuple[Rejection, ...] = get_args(Rejection)
_COMPLETE: tuple[FinishReason, ...] = ("stop", "length")
_INCOMPLETE: tuple[FinishReason, ...] = ("abort", "error")  # abort: the client disconnected or its deadline passed


class Metrics(EngineListener):
    """The counters, gauges and histograms of one server, in their own registry.

    Every series carries the label `model_name`. No label takes its value from a client.
    """

    def __init__(
        self,
        model_name: str,
        config: EngineConfig,
        key_names: Iterable[str] = (),
        is_standby_ready: Callable[[], bool] = lambda: False,
        *,
        is_restricted: bool = False,
    ) -> None:
        """`key_names` are the names of the API keys; each has its own series.

        `is_standby_ready` is called when the metrics are scraped. `is_restricted` if only keys of the operator can
        scrape: some counts would reveal texts of one key to another.
        """
        self.registry = CollectorRegistry()
        self._model_name = model_name
        lengths = buckets.one_two_five(config.max_model_len)

        # Of the latest step; gauges read it when they are scraped.
        self.stats = StepStats(num_blocks=config.num_blocks)
        self._gauge("num_requests_running", "Sequences in the engine's batch.", lambda: self.stats.num_running)
        self._gauge("num_requests_waiting", "Sequences in the engine's queue.", lambda: self.stats.num_waiting)
        self._gauge("kv_cache_usage_perc", "Fraction of the KV pool in use, 0 to 1.", self.kv_cache_usage)
        self._kv_cache_blocks()
        self._set_cache_config(config)

        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of sequences that generated a first token.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._prefix_cache_queries = self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache.")
        self._prefix_cache_hits = self._counter("prefix_cache_hits", "Tokens found in the prefix cache.")
        self._prefix_misses = PrefixMissCounter(
            self.registry, _PREFIX + "prefix_cache_misses", model_name, names_other_keys=is_restricted
        )
        self._num_draft_tokens = self._counter("spec_decode_num_draft_tokens", "Draft tokens proposed.")
        self._num_accepted_tokens = self._counter("spec_decode_num_accepted_tokens", "Draft tokens accepted.")
        self._num_drafted = self._by_source("draft_tokens", "Draft tokens proposed, by source.")
        self._num_accepted = self._by_source("accepted_draft_tokens", "Draft tokens accepted, by source.")
        self._draft_model_seconds = self._counter("draft_model_seconds", "Time in the draft model.")
        self._spill = SpillMetrics(self.registry, model_name, lambda: self.stats.spill)
        self._num_preemptions = self._counter("num_preemptions", "Sequences preempted because no blocks were free.")
        self._engine_restarts = self._counter("engine_restarts", "Restarts of the engine process.")
        self._gauge("standby_ready", "Whether a standby is ready to take over: 1 or 0.", is_standby_ready)
        self._requests_replayed = self._counter("requests_replayed", "Sequences resumed by a new engine process.")
        self._engine_down_seconds = self._counter("engine_down_seconds", "Time without an engine process.")
        text = "Requests rejected by admission control, by reason."
        self._rejections = self._counters("admission_rejections", text, "reason")
        for reason in REJECTIONS:
            self._rejections.labels(model_name, reason)
        word = "finished_reason"
        self._finished = {
            reason: family.labels(model_name, reason)
            for family, reasons in (
                (self._counters("request_success", "Complete sequences, by finish reason.", word), _COMPLETE),
                (self._counters("request_incomplete", "Incomplete sequences, by finish reason.", word), _INCOMPLETE),
            )
            for reason in reasons
        }
        text = "Request fields that other servers support and this one ignores, by name."
        self._ignored_fields = self._counters("ignored_fields", text, "field")
        self._http_requests = self._counters("http_requests", "HTTP requests, by route and status.", "route", "status")

        self.key_usage = KeyUsage(self.registry, model_name, key_names)

        self._iteration_tokens = self._histogram("iteration_tokens", "Tokens computed per step.", buckets.STEP_TOKENS)
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Time from arrival to the first token.", buckets.FIRST_TOKEN
        )
        self.inter_token = TokenHistogram(
            _PREFIX + "inter_token_latency_seconds",
            "Time between tokens.",
            {"model_name": model_name},
            buckets.PER_TOKEN,
        )
        self.registry.register(self.inter_token)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of a sequence.", buckets.PER_TOKEN
        )
        self._end_to_end = self._histogram(
            "e2e_request_latency_seconds", "Time from arrival to the end.", buckets.REQUEST
        )
        self._queue_time = self._histogram("request_queue_time_seconds", "Time in the queue.", buckets.REQUEST)
        self.wait_error = self._histogram(
            "admission_wait_error_seconds", "Predicted minus actual time in the queue.", buckets.WAIT_ERROR
        )
        self._inference_time = self._histogram(
            "request_inference_time_seconds", "Time from joining the batch to the last token.", buckets.REQUEST
        )
        self._prefill_time = self._histogram(
            "request_prefill_time_seconds", "Time from joining the batch to the first token.", buckets.REQUEST
        )
        self._decode_time = self._histogram(
            "request_decode_time_seconds", "Time from first to last token.", buckets.REQUEST
        )
        self._prompt_lengths = self._histogram("request_prompt_tokens", "Prompt tokens per sequence.", lengths)
        self._generation_lengths = self._histogram("request_generation_tokens", "Output tokens per sequence.", lengths)
        self._max_tokens = self._histogram("request_params_max_tokens", "max_tokens per sequence.", lengths)
        self._num_choices = self._histogram("request_params_n", "n per request.", buckets.CHOICES)

        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def add_queue_gauge(self, num_queued_tokens: Callable[[], float]) -> None:
        """Add a gauge that calls `num_queued_tokens` when it is scraped."""
        text = "Prompt tokens, and output tokens as predicted, of sequences without a first token."
        self._gauge("queued_tokens", text, num_queued_tokens)

    def add_ready_gauges(self, is_ready: Callable[[], bool], is_replacing: Callable[[], bool]) -> None:
        """Add gauges that call `is_ready` and `is_replacing` when they are scraped."""
        self._gauge("ready", "Whether the server is ready, as in /readyz: 1 or 0.", is_ready)
        self._gauge("engine_replacing", "Whether the engine is being replaced: 1 or 0.", is_replacing)

    @override
    def on_disconnect(self) -> None:
        """Reset the gauges: there is no engine."""
        self.stats = StepStats(num_blocks=self.stats.num_blocks)

    @override
    def on_step(self, output: StepOutput) -> None:
        """Count the result of one step."""
        self.stats = stats = output.stats
        self._generation_tokens.inc(sum(len(sequence.token_ids) for sequence in output.outputs))
        if stats.prefix_cache_queries:  # zero in most steps
            self._prefix_cache_queries.inc(stats.prefix_cache_queries)
            self._prefix_cache_hits.inc(stats.prefix_cache_hits)
        self._prefix_misses.count(output.events)
        if stats.num_draft_tokens:
            self._num_draft_tokens.inc(stats.num_draft_tokens)
            self._num_accepted_tokens.inc(stats.num_accepted_tokens)
            for source, counts in stats.draft_tokens_by_source().items():
                self._num_drafted[source].inc(counts[0])
                self._num_accepted[source].inc(counts[1])
        if stats.draft_model_seconds:
            self._draft_model_seconds.inc(stats.draft_model_seconds)
        if stats.spill is not None:
            self._spill.observe(stats.spill)
        if stats.num_preemptions:
            self._num_preemptions.inc(stats.num_preemptions)
        num_step_tokens = stats.num_prefill_tokens + stats.num_decode_tokens
        if num_step_tokens:
            self._iteration_tokens.observe(num_step_tokens)

    def observe_request(self, num_choices: int) -> None:
        """Observe an admitted generation request."""
        self._num_choices.observe(num_choices)

    def observe_tokens(
        self, choice: ChoiceRecord, num_tokens: int, received_at_seconds: float, arrived_at_seconds: float
    ) -> None:
        """Observe tokens that arrived together; call it before the record counts them.

        The time since the previous token is divided evenly among them.
        """
        if choice.num_read_tokens:
            latency_seconds = (received_at_seconds - choice.last_token_at_seconds) / num_tokens
            self.inter_token.observe(latency_seconds, num_tokens)
        else:
            self.first_token.observe(received_at_seconds - arrived_at_seconds)
            self._prompt_tokens.inc(choice.num_prompt_tokens)

    def observe_end(self, choice: ChoiceRecord, reason: FinishReason, arrived_at_seconds: float) -> None:
        """Observe a choice that has ended."""
        num_tokens = choice.num_read_tokens
        self._finished[reason].inc()
        self._end_to_end.observe(time.monotonic() - arrived_at_seconds)
        self._prompt_lengths.observe(choice.num_prompt_tokens)
        self._generation_lengths.observe(num_tokens)
        self._max_tokens.observe(choice.max_tokens)
        if not num_tokens:
            if reason == "length":  # only the prompt was computed
                self._prompt_tokens.inc(choice.num_prompt_tokens)
            return
        prefill_seconds, decode_seconds = choice.token_seconds()
        self._decode_time.observe(decode_seconds)
        if num_tokens > 1:
            self._per_token.observe(decode_seconds / (num_tokens - 1))
        if choice.scheduled_at_seconds:
            self._queue_time.observe(choice.queue_seconds)
            self._prefill_time.observe(prefill_seconds)
            self._inference_time.observe(prefill_seconds + decode_seconds)

    def count_ignored_fields(self, names: Iterable[str]) -> None:
        """Count the ignored fields of a request; `names` must be from the table of known fields."""
        for name in names:
            self._ignored_fields.labels(self._model_name, name).inc()

    def count_rejection(self, reason: Rejection) -> None:
        """Count a request that admission control rejected."""
        self._rejections.labels(self._model_name, reason).inc()

    @override
    def on_restart(self) -> None:
        """Count a restart of the engine process."""
        self._engine_restarts.inc()

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """Count the resumed requests and the downtime."""
        self._requests_replayed.inc(num_requests)
        self._engine_down_seconds.inc(down_seconds)

    def count_http(self, route: str, status: int) -> None:
        """Count one response; `route` is the route's template, never the path that was sent."""
        self._http_requests.labels(self._model_name, route, str(status)).inc()

    def exposition(self) -> bytes:
        """Return all series in the Prometheus text format 0.0.4."""
        return generate_latest(self.registry)

    def kv_cache_usage(self) -> float:
        """Return the fraction of the KV pool in use."""
        return self.stats.num_used_blocks / self.stats.num_blocks if self.stats.num_blocks else 0.0

    def _kv_cache_blocks(self) -> None:
        """Add the gauges of the pool's blocks by state."""
        text = "Blocks of the KV pool by state: used by sequences, cached (free with a reusable prefix), or free."
        family = Gauge(_PREFIX + "kv_cache_blocks", text, ["model_name", "state"], registry=self.registry)
        for state, value in {
            "used": lambda: self.stats.num_used_blocks,
            "cached": lambda: self.stats.num_cached_blocks,
            "free": lambda: self.stats.num_blocks - self.stats.num_used_blocks - self.stats.num_cached_blocks,
        }.items():
            family.labels(self._model_name, state).set_function(value)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        gauge = Gauge(_PREFIX + name, text, ["model_name"], registry=self.registry)
        gauge.labels(self._model_name).set_function(value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(_PREFIX + name, text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _counters(self, name: str, text: str, *labels: str) -> Counter:
        """Return a family of counters with labels beside the model's."""
        return Counter(_PREFIX + name, text, ["model_name", *labels], registry=self.registry)

    def _by_source(self, name: str, text: str) -> dict[str, Counter]:
        family = self._counters(name, text, "source")
        return {source: family.labels(self._model_name, source) for source in StepStats().draft_tokens_by_source()}

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(_PREFIX + name, text, ["model_name"], buckets=buckets, registry=self.registry)
        return family.labels(self._model_name)

    def _set_cache_config(self, config: EngineConfig) -> None:
        labels = {
            "model_name": self._model_name,
            "block_size": str(config.block_size),
            "num_blocks": str(config.num_blocks),
            "max_batch_tokens": str(config.max_batch_tokens),
            "max_num_seqs": str(config.max_num_seqs),
            "max_model_len": str(config.max_model_len),
            "num_ranks": str(config.num_ranks),
        }
        family = Gauge(
            _PREFIX + "cache_config_info", "Limits of the engine, as labels.", list(labels), registry=self.registry
        )
        family.labels(**labels).set(1)
