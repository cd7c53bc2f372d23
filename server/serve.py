"""Start-up: create the parts of a server from settings and models, connect them and run it."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from uvicorn.loops.auto import auto_loop_factory

from caravan.scheduler.config import PROCESS_BYTES
from caravan.scheduler.memory_needs import MemoryNeeds
from caravan.scheduler.messages import AdapterSource, StartEngine
from caravan.server.engine.client import EngineClient
from caravan.server.engine.engine_swaps import EngineSwaps
from caravan.server.engine.memory_plan import plan_memory
from caravan.server.engine.process import STANDBY_PROGRAM
from caravan.server.engine.swapped_engine import FIRST_LOAD_SECONDS, SwappedEngine, expected_load_seconds
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.graceful_shutdown import GracefulServer
from caravan.server.http.unix_socket import bind_unix, remove_unix
from caravan.server.replicas.replica_set import ReplicaSet
from caravan.server.replicas.replica_source import ReplicaSource
from caravan.server.settings import Settings
from caravan.server.shared_parts import BACKLOG, SharedParts
from caravan.server.start_text import models_text, start_text

REPLICA_SECONDS = 600.0  # for the first replica to load the model


@dataclass(frozen=True)
class ModelToServe:
    """One of several models: its settings, its file or folder, and how its engine is started."""

    settings: Settings
    path: Path
    start: StartEngine


def run(server: Coroutine[None, None, None]) -> None:
    """Run a server until it exits, on uvloop if it is installed, which costs less per token."""
    try:
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(server)
    finally:
        server.close()  # Ctrl-C before its start; Python would warn that it was never awaited


async def run_server(
    settings: Settings,
    model_path: Path,
    engine: EngineClient,
    listener: socket.socket,
    keys: ApiKeys | None = None,
    adapters: Sequence[AdapterSource] = (),
) -> None:
    """Serve a model until a signal arrives; raises EngineStartFailed or ValueError if the model cannot be served."""
    shared = SharedParts(settings, keys)
    stop = engine.stop
    try:
        shared.start_key_reloads()
        shared.open_batches()
        # The tokenizer is built while the engine process loads the weights.
        text = await shared.load_text(settings, model_path)
        report = await engine.ready()
        swap = None
        if settings.sleep_after is not None:
            swapped = SwappedEngine(
                name=settings.names[0],
                client=engine,
                need_bytes=report.weight_bytes + report.kv_cache_bytes + PROCESS_BYTES * report.config.num_ranks,
                load_seconds=report.load_seconds + FIRST_LOAD_SECONDS,
                sleep_after_seconds=settings.sleep_after,
            )
            swaps = EngineSwaps([swapped])
            swap, stop = (swapped, swaps), swaps.stop
            swaps.start()
        model = shared.model(settings, text, engine, report.config, report.vocab_size, swap)
        server = shared.server([model], stop, adapters, engine.adapters)
        names = (*settings.names, *(adapter.name for adapter in adapters))
        summary = partial(start_text, report, model_path.name, names, is_demo=settings.demo)
        await _serve(shared, server, listener, summary)
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
        shared.start_key_reloads()
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
        await _serve(shared, server, listener, partial(models_text, plan, [one.settings.names for one in models]))
    finally:
        if swaps is not None:
            await swaps.stop()
        await shared.close()


async def run_replicas(
    settings: Settings, model_path: Path, source: ReplicaSource, listener: socket.socket, keys: ApiKeys | None = None
) -> None:
    """Serve a model whose engines are replicas, until a signal arrives.

    Raises EngineStartFailed, ValueError or OSError if it cannot be served.
    """
    shared = SharedParts(settings, keys)
    replicas = ReplicaSet(hang_seconds=settings.engine_timeout)

    async def stop() -> None:
        await replicas.stop()
        await source.stop()

    try:
        shared.start_key_reloads()
        shared.open_batches()
        await source.start(replicas)
        text = await shared.load_text(settings, model_path)
        report = await replicas.ready(REPLICA_SECONDS)
        model, events = shared.replicated_model(settings, text, replicas, report.vocab_size)
        server = shared.server([model], stop)
        events.on_max_num_seqs = shared.limit_requests
        events.on_capacity(replicas.config(), len(replicas.members))
        await _serve(shared, server, listener, partial(start_text, report, model_path.name, settings.names))
    finally:
        await stop()
        await shared.close()


async def _serve(
    shared: SharedParts, server: GracefulServer, listener: socket.socket, text: Callable[[str], str]
) -> None:
    """Print the start-up summary when the port is open, and serve until a signal arrives."""
    await shared.start_batches()
    unix_path = Path(listener.getsockname()) if listener.family == socket.AF_UNIX else None
    listener.listen(BACKLOG)  # from now on connections are queued instead of refused
    print(text(address_of(listener, is_encrypted=server.config.is_ssl)), flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        await shared.close_batches()
        remove_unix(unix_path)


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


def bind(host: str, port: int, unix_path: Path | None = None) -> socket.socket:
    """Return a socket bound to the address, or to a path, not listening yet; raises OSError."""
    if unix_path is not None:
        return bind_unix(unix_path)
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
    """Return the URL of a bound socket, for a client on this machine; of a Unix socket its path after `unix:`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_encrypted else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
