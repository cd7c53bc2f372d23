"""Start-up: create the parts of a server from settings and a model, connect them and run it."""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from pathlib import Path

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from caravan import __version__
from caravan.model.sampling.generation_defaults import load_generation_defaults
from caravan.scheduler.messages import EngineReady
from caravan.server.app import AppParts, create_app
from caravan.server.batches.batches import Batches
from caravan.server.engine.client import EngineClient
from caravan.server.engine.listener import EngineListeners
from caravan.server.generation.admission import Admission
from caravan.server.generation.executors import Executors
from caravan.server.generation.text_model import text_parts
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.body_memory import BodyMemory
from caravan.server.http.client_address import networks
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.http.graceful_shutdown import GracefulServer
from caravan.server.http.host_names import allowed_hosts, allowed_origins
from caravan.server.http.protocol import HttpProtocol
from caravan.server.observe.http_record import HttpRecord
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.observe.tracing import make_tracer
from caravan.server.observe.vllm_names import add_vllm_names
from caravan.server.operations.live_view import LiveView
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.grammar_check import GrammarCheck
from caravan.server.settings import Settings

LAST_SECONDS = 1  # for open connections when the server exits
BACKLOG = 2048  # connections that wait to be accepted

logger = logging.getLogger(__name__)


def run(server: Coroutine[None, None, None]) -> None:
    """Run a server until it exits, on uvloop if it is installed, which costs less per token."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(server)


async def run_server(
    settings: Settings, model_path: Path, engine: EngineClient, listener: socket.socket, keys: ApiKeys | None = None
) -> None:
    """Serve until a signal arrives; raises EngineStartFailed or ValueError if the model cannot be served."""
    tracer = make_tracer()
    grammar_check, executors = GrammarCheck(), Executors()
    template: ChatTemplate | None = None
    batches: Batches | None = None
    try:
        if settings.batch_folder is not None:
            batches = Batches(settings.batch_folder, settings.batch_limits)
        # The tokenizer is built while the engine process loads the weights.
        tokenizer, template = await asyncio.to_thread(text_parts, model_path, settings.chat_template)
        defaults = load_generation_defaults(model_path)
        report = await engine.ready()
        names = settings.names
        metrics = Metrics(
            names[0],
            report.config,
            keys.names if keys else (),
            engine.is_standby_ready,
            is_restricted=keys is not None and keys.is_scraping_limited,
        )
        if settings.metrics_names == "vllm":
            add_vllm_names(metrics, names[0], report.config)
        admission = Admission(report.config, metrics, settings.queue_limits)
        history, live_view = RequestHistory(), LiveView(engine.subscribe)
        bodies = BodyMemory(int(settings.max_body_memory))
        limit = ConcurrencyLimit(report.config.max_num_seqs + settings.max_queued_requests, bodies)
        engine.listener = EngineListeners([metrics, admission, history, live_view])

        def on_response(record: HttpRecord) -> None:
            if record.method == "POST" or settings.access_log:
                log_request(record)
            if tracer is not None and record.generation is not None:
                tracer.trace(record, record.generation)

        app = create_app(
            AppParts(
                engine=engine,
                tokenizer=tokenizer.resized(report.vocab_size),
                chat_template=template,
                model_name=names[0],
                aliases=names[1:],
                max_model_len=report.config.max_model_len,
                version=__version__,
                metrics=metrics,
                admission=admission,
                concurrency_limit=limit,
                live_view=live_view,
                history=history,
                defaults=defaults,
                grammar_check=grammar_check,
                executors=executors,
                batches=batches,
                max_batch_lines=settings.batch_concurrency or max(report.config.max_num_seqs // 2, 1),
                keys=keys,
                hosts=allowed_hosts(settings.allowed_hosts, settings.host),
                origins=allowed_origins(settings.allowed_origins),
                trusted_proxies=networks(settings.trusted_proxies),
                on_response=on_response,
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
        server = GracefulServer(config, limit, settings.drain_timeout, engine.stop, live_view.close)
        if batches is not None:
            await batches.start()
        listener.listen(BACKLOG)  # from now on connections are queued instead of refused
        print(start_text(report, model_path, names, address_of(listener, is_encrypted=config.is_ssl)), flush=True)
        await server.serve(sockets=[listener])
    finally:
        if batches is not None:
            await batches.close()
        await engine.stop()
        executors.close()
        grammar_check.close()
        if template is not None:
            template.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)


def log_request(record: HttpRecord) -> None:
    """Log an HTTP request that has ended."""
    logging.getLogger("caravan.requests").info("request", extra=record.log_fields())


def start_text(report: EngineReady, model_path: Path, names: tuple[str, ...], address: str) -> str:
    """Return the start-up summary: the model, the KV pool and the address."""
    config = report.config
    lengths = [config.max_model_len, *(length for length in (1024,) if length < config.max_model_len)]
    fits = [f"{config.num_requests_of(length):,} of {length:,} tokens" for length in lengths]
    return "\n".join(
        [
            f"Model    {model_path.name}: {report.num_parameters / 1e6:,.0f} million parameters "
            f"({report.weight_bytes / 1e6:,.0f} MB), loaded in {report.load_seconds:.1f} s",
            f"Weights  {report.weights}",
            *([f"Draft    {report.draft_model}"] if report.draft_model else []),
            f"Name     {', '.join(names)}",
            f"KV pool  {config.num_tokens:,} tokens in {config.num_blocks:,} blocks of {config.block_size} "
            f"({report.kv_cache_bytes / 1e6:,.0f} MB) in {report.kv_cache_dtype}",
            f"Room     for {' or '.join(fits)} each, prompt and answer together; {config.max_num_seqs} run at once",
            f"Ready    {address}/v1 for OpenAI clients, {address}/docs for the description of the API",
        ]
    )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not listening yet; raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket, *, is_encrypted: bool = False) -> str:
    """Return the URL of a bound socket, for a client on this machine."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_encrypted else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
