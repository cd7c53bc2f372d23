"""SharedParts: what all models of a server share, from the thread pools to the port."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvicorn

from caravan import __version__
from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import AdapterSource
from caravan.server.app import AppParts, create_app
from caravan.server.batches.batches import Batches
from caravan.server.engine.adapter_list import AdapterList
from caravan.server.engine.client import EngineClient
from caravan.server.engine.engine_swaps import EngineSwaps
from caravan.server.engine.listener import EngineListener, EngineListeners
from caravan.server.engine.swapped_engine import SwappedEngine
from caravan.server.generation.admission import Admission
from caravan.server.generation.answer_codes import AnswerCodes, answer_codes
from caravan.server.generation.context import NO_KEY
from caravan.server.generation.executors import Executors
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.suggested_sampling import suggested_sampling
from caravan.server.generation.text_model import text_parts
from caravan.server.http.api_keys import ApiKeys, WrongKeys
from caravan.server.http.body_memory import BodyMemory
from caravan.server.http.client_address import networks
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.http.graceful_shutdown import GracefulServer
from caravan.server.http.hangup import on_hangup
from caravan.server.http.host_names import allowed_hosts, allowed_origins
from caravan.server.http.protocol import HttpProtocol
from caravan.server.learn.tracer import TracedModel, Tracer
from caravan.server.observe.build_info import add_build_info
from caravan.server.observe.engine_usage import EngineUsage
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.replica_metrics import ReplicaMetrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.observe.response_log import ResponseLog
from caravan.server.observe.sleep_metrics import SleepMetrics
from caravan.server.observe.tracing import make_tracer
from caravan.server.observe.vllm_names import add_vllm_names
from caravan.server.openai.adapter_folder import AdapterFolder
from caravan.server.openai.thought_tokens import thought_token_ids
from caravan.server.openai.tool_calls.call_format import call_token_ids
from caravan.server.operations.live_view import LiveView
from caravan.server.operations.replica_events import ReplicaEvents
from caravan.server.replicas.replica_set import ReplicaSet
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.grammar_check import GrammarCheck
from caravan.server.settings import Settings, WrongSettings
from caravan.server.shown_options import shown_options

LAST_SECONDS = 1  # for open connections when the server exits
BACKLOG = 2048  # connections that wait to be accepted

logger = logging.getLogger(__name__)


class TextParts(NamedTuple):
    """What a model needs besides its weights to read and write text."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults
    codes: AnswerCodes


class SharedParts:
    """What the models of a server share; close it at the end."""

    def __init__(self, settings: Settings, keys: ApiKeys | None) -> None:
        self.settings = settings
        self.keys = keys
        self._grammar_check, self._executors = GrammarCheck(), Executors()
        self._templates: list[ChatTemplate] = []
        self._batches: Batches | None = None
        self._limit: ConcurrencyLimit | None = None  # set by `server`
        self._metrics: list[Metrics] = []  # of each model
        self._tracer = make_tracer()
        self._learning = Tracer() if settings.has_lessons(has_keys=keys is not None) else None
        self._paths: dict[str, Path] = {}  # of models, by their first names
        self._hangups = ExitStack()

    def start_key_reloads(self) -> None:
        """Read the file of API keys again at each SIGHUP, if there is one, also while a model loads."""
        if self.settings.api_key_file is not None:
            self._hangups.enter_context(on_hangup(self.reload_keys, partial(signal.raise_signal, signal.SIGTERM)))

    def reload_keys(self) -> None:
        """Read the API keys anew; they stay as they are if the file is wrong."""
        assert self.keys is not None, "there is a file of keys"
        try:
            keys = self.settings.load_keys()
            if keys is None:
                raise WrongKeys("The file has no key.")
            self.keys.replace(keys)
        except (WrongSettings, WrongKeys) as error:
            logger.error("The API keys stay as they are. %s", error)
            return
        for metrics in self._metrics:
            metrics.key_usage.add(self.keys.names)
        logger.info("The API keys were read again: %d.", len(self.keys.names))

    def open_batches(self) -> None:
        """Open the folder of files and batches, if there is one; raises FolderError."""
        if self.settings.batch_folder is not None:
            names = frozenset({NO_KEY}) if self.keys is None else self.keys.names
            self._batches = Batches(self.settings.batch_folder, self.settings.batch_limits, key_names=names)

    async def load_text(self, settings: Settings, model_path: Path) -> TextParts:
        """Return the tokenizer and the chat template of a model; raises ValueError or OSError."""
        self._paths[settings.names[0]] = model_path
        tokenizer, template = await asyncio.to_thread(text_parts, model_path, settings.chat_template)
        if template is not None:
            self._templates.append(template)
            for name in settings.template_variables:
                if not (template.names(name) or template.for_tools().names(name)):
                    raise ValueError(f"--chat-template-kwargs: the chat template has no variable {name}. Remove it.")
        codes = await asyncio.to_thread(answer_codes, tokenizer, template)
        return TextParts(tokenizer, template, suggested_sampling(settings.model, model_path), codes)

    def model(
        self,
        settings: Settings,
        text: TextParts,
        engine: EngineClient,
        config: EngineConfig,
        vocab_size: int,
        swap: tuple[SwappedEngine, EngineSwaps] | None = None,
    ) -> tuple[ServedModel, LiveView]:
        """Return a model with the parts that listen to its engine; `swap` if the engine can sleep."""
        served, live_view = self._parts(settings, text, engine, config, vocab_size)
        listeners: list[EngineListener] = [served.metrics, served.admission, served.history, live_view]
        if swap is not None:
            swapped, swaps = swap
            listeners.append(SleepMetrics(served.metrics.registry, swapped, swaps))
            served.admission.start_seconds = partial(swaps.forecast_seconds, swapped)
            swapped.drain_seconds = served.admission.drain_seconds
        engine.listener = EngineListeners(listeners)
        EngineUsage(
            served.metrics.registry,
            served.name,
            lambda: None if engine.state == "asleep" else engine.engine_pid,
            has_ranks=config.num_ranks > 1,
        )
        return served, live_view

    def replicated_model(
        self, settings: Settings, text: TextParts, replicas: ReplicaSet, vocab_size: int
    ) -> tuple[tuple[ServedModel, LiveView], ReplicaEvents]:
        """Return a model with the parts that listen to its replicas."""
        served, live_view = self._parts(settings, text, replicas, replicas.config(), vocab_size)
        counts = ReplicaMetrics(served.metrics.registry, served.name, lambda: replicas.totals.stats)
        events = ReplicaEvents(served.metrics, counts, served.admission, served.history, live_view)
        replicas.listener = events
        return (served, live_view), events

    def _parts(
        self,
        settings: Settings,
        text: TextParts,
        engine: "EngineClient | ReplicaSet",  # evaluated late: a test replaces EngineClient
        config: EngineConfig,
        vocab_size: int,
    ) -> tuple[ServedModel, LiveView]:
        """Return a model whose parts do not listen to its engine yet."""
        names = settings.names
        metrics = Metrics(
            names[0],
            config,
            self.keys.names if self.keys else (),
            engine.is_standby_ready,
            is_restricted=self.keys is not None and self.keys.is_scraping_limited,
        )
        self._metrics.append(metrics)
        add_build_info(
            metrics.registry,
            names[0],
            version=__version__,
            quantization=settings.quantization,
            kv_cache_dtype=settings.kv_cache_dtype,
            device=settings.device,
        )
        if self.settings.metrics_names == "vllm":
            add_vllm_names(metrics, names[0], config)
        if self._learning is not None:
            path = self._paths[names[0]]
            self._learning.models[names[0]] = TracedModel(path, config.max_model_len, settings.merge_lora)
        tokenizer = text.tokenizer.resized(vocab_size)
        served = ServedModel(
            name=names[0],
            aliases=names[1:],
            max_model_len=config.max_model_len,
            engine=engine,
            tokenizer=tokenizer,
            chat_template=text.template,
            codes=text.codes.within(tokenizer.vocab_size),
            shown_token_ids=call_token_ids(tokenizer) | thought_token_ids(tokenizer, text.template),
            metrics=metrics,
            admission=Admission(config, metrics, settings.queue_limits, start_seconds=engine.start_seconds),
            history=RequestHistory(),
            defaults=text.defaults,
            template_variables=settings.template_variables,
            grammar_check=self._grammar_check,
            executors=self._executors,
        )
        return served, LiveView(engine.subscribe)

    def server(
        self,
        models: Sequence[tuple[ServedModel, LiveView]],
        stop_engines: Callable[[], Awaitable[None]],
        adapters: Sequence[AdapterSource] = (),
        adapter_list: AdapterList | None = None,
    ) -> GracefulServer:
        """Return the server of the models, of which the first can have adapters, also such as come to a list."""
        settings = self.settings
        adapter_folder = None
        if settings.lora_folder is not None and adapter_list is not None:
            adapter_folder = AdapterFolder(settings.lora_folder, adapter_list)
        live_views = [live_view for _, live_view in models]
        admissions = [served.admission for served, _ in models]
        least_num_seqs = min(one.config.max_num_seqs for one in admissions)
        max_requests = sum(one.config.max_num_seqs + one.limits.max_requests for one in admissions)
        self._limit = limit = ConcurrencyLimit(max_requests, BodyMemory(int(settings.max_body_memory)))

        def end_live_views() -> None:
            for live_view in live_views:
                live_view.close()

        app = create_app(
            AppParts(
                models=[served for served, _ in models],
                adapted=[models[0][0].with_adapter(adapter) for adapter in adapters],
                adapter_folder=adapter_folder,
                live_views=live_views,
                version=__version__,
                concurrency_limit=limit,
                batches=self._batches,
                max_batch_lines=settings.batch_concurrency or max(least_num_seqs // 2, 1),
                keys=self.keys,
                hosts=allowed_hosts(settings.allowed_hosts, settings.host if settings.uds is None else ""),
                root_path=settings.root_path,
                origins=allowed_origins(settings.allowed_origins),
                trusted_proxies=networks(settings.trusted_proxies),
                resume_limits=settings.resume_limits,
                options=shown_options(settings),
                tracer=self._learning,
                on_response=ResponseLog(has_all=settings.access_log, has_model=len(models) > 1, tracer=self._tracer),
            )
        )
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            lifespan="off",
            proxy_headers=False,  # uvicorn trusts local proxies, and does not parse addresses
            backlog=BACKLOG,
            timeout_keep_alive=settings.keep_alive_timeout,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        return GracefulServer(config, limit, settings.drain_timeout, stop_engines, end_live_views)

    def limit_requests(self, max_num_seqs: int) -> None:
        """Set the number of sequences that the only model of the server can run at once, after `server`."""
        assert self._limit is not None
        self._limit.max_requests = max_num_seqs + self.settings.max_queued_requests

    async def close(self) -> None:
        """End all worker processes, and send the remaining spans."""
        self._hangups.close()
        await self.close_batches()
        self._executors.close()
        self._grammar_check.close()
        for template in self._templates:
            template.close()
        if self._learning is not None:
            await asyncio.to_thread(self._learning.close)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def start_batches(self) -> None:
        """Continue the batches that an earlier process left, with `server` as what answers their lines."""
        if self._batches is not None:
            await self._batches.start()

    async def close_batches(self) -> None:
        """Stop all batches and close their folder."""
        batches, self._batches = self._batches, None
        if batches is not None:
            await batches.close()
