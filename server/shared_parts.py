"""SharedParts: what all models of a server share, from the thread pools to the port."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvicorn

from caravan import __version__
from caravan.model.sampling.generation_defaults import GenerationDefaults, load_generation_defaults
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.scheduler.config import EngineConfig
from caravan.server.app import AppParts, create_app
from caravan.server.batches.batches import Batches
from caravan.server.engine.client import EngineClient
from caravan.server.engine.engine_swaps import EngineSwaps
from caravan.server.engine.listener import EngineListener, EngineListeners
from caravan.server.engine.swapped_engine import SwappedEngine
from caravan.server.generation.admission import Admission
from caravan.server.generation.context import NO_KEY
from caravan.server.generation.executors import Executors
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_model import text_parts
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.body_memory import BodyMemory
from caravan.server.http.client_address import networks
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.http.graceful_shutdown import GracefulServer
from caravan.server.http.host_names import allowed_hosts, allowed_origins
from caravan.server.http.protocol import HttpProtocol
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.observe.response_log import ResponseLog
from caravan.server.observe.sleep_metrics import SleepMetrics
from caravan.server.observe.tracing import make_tracer
from caravan.server.observe.vllm_names import add_vllm_names
from caravan.server.openai.tool_calls.call_format import call_token_ids
from caravan.server.operations.live_view import LiveView
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.grammar_check import GrammarCheck
from caravan.server.settings import Settings

LAST_SECONDS = 1  # for open connections when the server exits
BACKLOG = 2048  # connections that wait to be accepted


class TextParts(NamedTuple):
    """What a model needs besides its weights to read and write text."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults


class SharedParts:
    """What the models of a server share; close it at the end."""

    def __init__(self, settings: Settings, keys: ApiKeys | None) -> None:
        self.settings = settings
        self.keys = keys
        self._grammar_check, self._executors = GrammarCheck(), Executors()
        self._templates: list[ChatTemplate] = []
        self._batches: Batches | None = None
        self._tracer = make_tracer()

    def open_batches(self) -> None:
        """Open the folder of files and batches, if there is one; raises FolderError."""
        if self.settings.batch_folder is not None:
            names = (NO_KEY,) if self.keys is None else self.keys.names
            self._batches = Batches(self.settings.batch_folder, self.settings.batch_limits, key_names=names)

    async def load_text(self, settings: Settings, model_path: Path) -> TextParts:
        """Return the tokenizer and the chat template of a model; raises ValueError or OSError."""
        tokenizer, template = await asyncio.to_thread(text_parts, model_path, settings.chat_template)
        if template is not None:
            self._templates.append(template)
        return TextParts(tokenizer, template, load_generation_defaults(model_path))

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
        names = settings.names
        metrics = Metrics(
            names[0],
            config,
            self.keys.names if self.keys else (),
            engine.is_standby_ready,
            is_restricted=self.keys is not None and self.keys.is_scraping_limited,
        )
        if self.settings.metrics_names == "vllm":
            add_vllm_names(metrics, names[0], config)
        admission = Admission(config, metrics, self.settings.queue_limits)
        history, live_view = RequestHistory(), LiveView(engine.subscribe)
        listeners: list[EngineListener] = [metrics, admission, history, live_view]
        if swap is not None:
            swapped, swaps = swap
            listeners.append(SleepMetrics(metrics.registry, swapped, swaps))
            admission.start_seconds = partial(swaps.forecast_seconds, swapped)
            swapped.drain_seconds = admission.drain_seconds
        engine.listener = EngineListeners(listeners)
        tokenizer = text.tokenizer.resized(vocab_size)
        served = ServedModel(
            name=names[0],
            aliases=names[1:],
            max_model_len=config.max_model_len,
            engine=engine,
            tokenizer=tokenizer,
            chat_template=text.template,
            shown_token_ids=call_token_ids(tokenizer),
            metrics=metrics,
            admission=admission,
            history=history,
            defaults=text.defaults,
            grammar_check=self._grammar_check,
            executors=self._executors,
        )
        return served, live_view

    def server(
        self, models: Sequence[tuple[ServedModel, LiveView]], stop_engines: Callable[[], Awaitable[None]]
    ) -> GracefulServer:
        """Return the server of the models."""
        settings = self.settings
        live_views = [live_view for _, live_view in models]
        configs = [served.admission.config for served, _ in models]
        max_requests = sum(config.max_num_seqs + settings.max_queued_requests for config in configs)
        limit = ConcurrencyLimit(max_requests, BodyMemory(int(settings.max_body_memory)))

        def end_live_views() -> None:
            for live_view in live_views:
                live_view.close()

        app = create_app(
            AppParts(
                models=[served for served, _ in models],
                live_views=live_views,
                version=__version__,
                concurrency_limit=limit,
                batches=self._batches,
                max_batch_lines=settings.batch_concurrency or max(min(one.max_num_seqs for one in configs) // 2, 1),
                keys=self.keys,
                hosts=allowed_hosts(settings.allowed_hosts, settings.host),
                origins=allowed_origins(settings.allowed_origins),
                trusted_proxies=networks(settings.trusted_proxies),
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

    async def close(self) -> None:
        """End all worker processes, and send the remaining spans."""
        await self.close_batches()
        self._executors.close()
        self._grammar_check.close()
        for template in self._templates:
            template.close()
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
