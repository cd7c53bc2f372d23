"""Start-up: create the parts of a server from settings and models, connect them and run it."""

import asyncio
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from uvicorn.loops.auto import auto_loop_factory

from caravan.scheduler.config import PROCESS_BYTES
from caravan.scheduler.memory_needs import MemoryNeeds, MemoryPlan
from caravan.scheduler.messages import EngineReady, StartEngine
from caravan.server.engine.client import EngineClient
from caravan.server.engine.engine_swaps import EngineSwaps
from caravan.server.engine.memory_plan import plan_memory
from caravan.server.engine.process import STANDBY_PROGRAM
from caravan.server.engine.swapped_engine import FIRST_LOAD_SECONDS, SwappedEngine, expected_load_seconds
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.graceful_shutdown import GracefulServer
from caravan.server.settings import Settings
from caravan.server.shared_parts import BACKLOG, SharedParts


@dataclass(frozen=True)
class ModelToServe:
    """One of several models: its settings, its file or folder, and how its engine is started."""

    settings: Settings
    path: Path
    start: StartEngine


def run(server: Coroutine[None, None, None]) -> None:
    """Run a server until it exits, on uvloop if it is installed, which costs less per token."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(server)


async def run_server(
    settings: Settings, model_path: Path, engine: EngineClient, listener: socket.socket, keys: ApiKeys | None = None
) -> None:
    """Serve a model until a signal arrives; raises EngineStartFailed or ValueError if the model cannot be served."""
    shared = SharedParts(settings, keys)
    stop = engine.stop
    try:
        shared.open_batches()
        # The tokenizer is built while the engine process loads the weights.
        text = await shared.load_text(settings, model_path)
        report = await engine.ready()
        swap = None
        if settings.sleep_after is not None:
            swapped = SwappedEngine(
                name=settings.names[0],
                client=engine,
                need_bytes=report.weight_bytes + report.kv_cache_bytes + PROCESS_BYTES,
                load_seconds=report.load_seconds + FIRST_LOAD_SECONDS,
                sleep_after_seconds=settings.sleep_after,
            )
            swaps = EngineSwaps([swapped])
            swap, stop = (swapped, swaps), swaps.stop
            swaps.start()
        model = shared.model(settings, text, engine, report.config, report.vocab_size, swap)
        server = shared.server([model], stop)
        address = address_of(listener, is_encrypted=server.config.is_ssl)
        await _serve(shared, server, listener, start_text(report, model_path, settings.names, address))
    finally:
        await stop()
        await shared.close()


async def run_models(
    settings: Settings, models: Sequence[ModelToServe], listener: socket.socket, keys: ApiKeys | None = None
) -> None:
    """Serve several models until a signal arrives; raises ValueError or OSError if one of them cannot be served."""
    shared = SharedParts(settings, keys)
    swaps: EngineSwaps | None = None
    try:
        shared.open_batches()
        names = [model.settings.names[0] for model in models]
        budget_bytes = None if settings.models_memory is None else int(settings.models_memory)
        starts = [model.start for model in models]
        planning = asyncio.create_task(asyncio.to_thread(plan_memory, names, starts, budget_bytes))
        texts = [await shared.load_text(model.settings, model.path) for model in models]
        plan = await planning
        engines = [_sleeping_engine(model, needs) for model, needs in zip(models, plan.needs, strict=True)]
        swaps = EngineSwaps(engines, plan.budget_bytes)
        served = [
            shared.model(model.settings, text, engine.client, needs.config, needs.vocab_size, (engine, swaps))
            for model, text, engine, needs in zip(models, texts, engines, plan.needs, strict=True)
        ]
        swaps.start()
        server = shared.server(served, swaps.stop)
        address = address_of(listener, is_encrypted=server.config.is_ssl)
        await _serve(shared, server, listener, models_text(plan, models, address))
    finally:
        if swaps is not None:
            await swaps.stop()
        await shared.close()


async def _serve(shared: SharedParts, server: GracefulServer, listener: socket.socket, text: str) -> None:
    """Print the start-up summary when the port is open, and serve until a signal arrives."""
    await shared.start_batches()
    listener.listen(BACKLOG)  # from now on connections are queued instead of refused
    print(text, flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        await shared.close_batches()


def _sleeping_engine(model: ModelToServe, needs: MemoryNeeds) -> SwappedEngine:
    """Return the engine of a model with the planned limits, which has no process yet."""
    settings, start = model.settings, model.start
    limits = msgspec.structs.replace(
        start.limits, kv_cache_memory_bytes=needs.kv_cache_bytes, max_model_len=needs.config.max_model_len
    )
    return SwappedEngine(
        name=settings.names[0],
        client=EngineClient(
            msgspec.structs.replace(start, limits=limits),
            hang_seconds=settings.engine_timeout,
            standby_program=STANDBY_PROGRAM if settings.standby else None,
            is_asleep=True,
            name=settings.names[0],
        ),
        need_bytes=needs.total_bytes,
        load_seconds=expected_load_seconds(needs.weight_bytes),
        sleep_after_seconds=settings.sleep_after,
    )


def models_text(plan: MemoryPlan, models: Sequence[ModelToServe], address: str) -> str:
    """Return the start-up summary of several models: what each of them needs, and the address."""
    lines = [f"Models   {len(models)} in {plan.budget_bytes / 1e6:,.0f} MB, each loaded when it gets a request"]
    for model, needs in zip(models, plan.needs, strict=True):
        lines.append(
            f"Name     {', '.join(model.settings.names)}: {needs.total_bytes / 1e6:,.0f} MB "
            f"(weights {needs.weight_bytes / 1e6:,.0f}, KV pool {needs.kv_cache_bytes / 1e6:,.0f} "
            f"for {needs.config.num_tokens:,} tokens)"
        )
    return "\n".join([*lines, _ready_line(address)])


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
            _ready_line(address),
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


def _ready_line(address: str) -> str:
    return f"Ready    {address}/v1 for OpenAI clients, {address}/docs for the description of the API"


def address_of(listener: socket.socket, *, is_encrypted: bool = False) -> str:
    """Return the URL of a bound socket, for a client on this machine."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_encrypted else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
