"""caravan serve."""

import asyncio
import sys

import msgspec
import typer

from caravan.cli.config_text import config_in_force
from caravan.cli.fail import USAGE_ERROR, fail
from caravan.cli.interrupts import INTERRUPTED, interruptible
from caravan.cli.missing_extra import missing_extra
from caravan.cli.model_argument import resolved
from caravan.cli.serve_options import PRINT_CONFIG
from caravan.server.adapter_files import adapter_sources, check_lora
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.early_hangup import release_hangups
from caravan.server.models_file import load_models
from caravan.server.settings import Settings, WrongSettings, load_settings


def serve(ctx: typer.Context) -> None:
    """Serve a model over HTTP, or several with --models.

    Each option can also be set as an environment variable, or as a key of the
    YAML file that --config names. Options override variables, variables
    override the file. Ctrl-C stops the server.

    \b
    Examples:
      caravan serve
      caravan serve org/name:Q4_K_M --port 8001 --max-model-len 4096
      caravan serve --demo
      caravan serve --config caravan.yaml --print-config
    """
    flags = {name: value for name, value in ctx.params.items() if value is not None}
    is_printed = flags.pop(PRINT_CONFIG, False)
    try:
        settings = load_settings(flags)
        keys = settings.load_keys()
        settings.check_tls()
        settings.check_uds()
        settings.check_draft_model()
        settings.check_kv_spill()
        settings.check_tensor_parallel()
        settings.check_models()
        settings.check_engines()
        settings.check_demo()
        check_lora(settings, keys)
        models = [] if settings.models is None else load_models(settings, flags)
    except WrongSettings as error:
        fail(str(error), USAGE_ERROR)
    if settings.api_key_file is None:
        release_hangups()
    if is_printed:
        typer.echo(config_in_force(settings, flags), nl=False)
        return
    # Imported late, so that a wrong option is an error at once; the web framework comes while the engine loads.
    from caravan.server.observe.logs import set_up_logs

    set_up_logs(settings.log_format, settings.log_level)
    is_shared = keys is not None and len(keys.names) > 1
    if models:
        _serve_models(settings, models, keys, is_shared=is_shared)
    elif settings.engines is not None:
        _serve_replicas(settings, keys)
    else:
        _serve_model(settings, keys, is_shared=is_shared)


def _serve_model(settings: Settings, keys: ApiKeys | None, *, is_shared: bool) -> None:
    """Serve a model with an engine process of its own, which loads it while the web framework is imported."""
    from caravan.server.engine.client import EngineClient
    from caravan.server.engine.process import STANDBY_PROGRAM, EngineStartFailed

    with interruptible():
        model_path = resolved(settings.model)
        draft_model_path = None if settings.draft_model is None else resolved(settings.draft_model)
    try:
        adapters = adapter_sources(settings)
    except ValueError as error:
        fail(str(error))
    start = settings.start_engine(model_path, draft_model_path, is_shared=is_shared)
    max_lora_rank = 0 if settings.lora_folder is None else settings.max_lora_rank
    start = msgspec.structs.replace(start, adapters=adapters, max_lora_rank=max_lora_rank)
    engine = EngineClient(
        start,
        hang_seconds=settings.engine_timeout,
        standby_program=STANDBY_PROGRAM if settings.standby else None,
    )
    from caravan.server.serve import bind, run, run_server

    try:
        listener = bind(settings.host, settings.port, settings.uds)
    except OSError as error:
        asyncio.run(engine.stop())
        fail(_cannot_listen(settings, error))
    try:
        with interruptible():
            run(run_server(settings, model_path, engine, listener, keys, adapters))
    except (EngineStartFailed, ValueError, OSError) as error:
        fail(f"Cannot serve {settings.model}: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _serve_models(settings: Settings, models: list[Settings], keys: ApiKeys | None, *, is_shared: bool) -> None:
    """Serve the models of a file; each engine is started by a request."""
    from caravan.server.serve import ModelToServe, bind, run, run_models

    to_serve = []
    for model in models:
        with interruptible():
            path = resolved(model.model)
            draft_path = None if model.draft_model is None else resolved(model.draft_model)
        to_serve.append(ModelToServe(model, path, model.start_engine(path, draft_path, is_shared=is_shared)))
    try:
        listener = bind(settings.host, settings.port, settings.uds)
    except OSError as error:
        fail(_cannot_listen(settings, error))
    try:
        with interruptible():
            run(run_models(settings, to_serve, listener, keys))
    except (ValueError, OSError) as error:
        fail(f"Cannot serve {settings.models}: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _serve_replicas(settings: Settings, keys: ApiKeys | None) -> None:
    """Serve a model whose engines are replicas of an application of Ray Serve."""
    try:
        from caravan.server.replicas.ray_cluster import RayCluster
    except ModuleNotFoundError as error:
        fail(missing_extra(error))
    from caravan.server.engine.process import EngineStartFailed
    from caravan.server.serve import bind, run, run_replicas

    assert settings.engines is not None
    with interruptible():
        model_path = resolved(settings.model)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        fail(_cannot_listen(settings, error))
    try:
        with interruptible():
            cluster = RayCluster(settings.engines.removeprefix("ray://"))
            run(run_replicas(settings, model_path, cluster, listener, keys))
    except (EngineStartFailed, ValueError, OSError) as error:
        fail(f"Cannot serve {settings.model}: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _cannot_listen(settings: Settings, error: OSError) -> str:
    if settings.uds is not None:
        return f"Cannot listen on {settings.uds}: {error.strerror or error}. Choose another --uds."
    return f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another --host or --port."
