"""caravan serve."""

import asyncio
import sys

import typer

from caravan.cli.fail import USAGE_ERROR, fail
from caravan.cli.model_argument import resolved
from caravan.server.http.api_keys import ApiKeys
from caravan.server.models_file import load_models
from caravan.server.settings import Settings, WrongSettings, load_settings


def serve(ctx: typer.Context) -> None:
    """Serve a model over HTTP, or several with --models.

    Each option can also be set as an environment variable, or as a key of the
    YAML file that --config names. Options override variables, variables
    override the file. Ctrl-C stops the server.
    """
    flags = {name: value for name, value in ctx.params.items() if value is not None}
    try:
        settings = load_settings(flags)
        keys = settings.load_keys()
        settings.check_tls()
        settings.check_draft_model()
        settings.check_kv_spill()
        settings.check_models()
        models = [] if settings.models is None else load_models(settings, flags)
    except WrongSettings as error:
        fail(str(error), USAGE_ERROR)
    # Imported late, so that a wrong option is an error at once; the web framework comes while the engine loads.
    from caravan.server.observe.logs import set_up_logs

    set_up_logs(settings.log_format)
    is_shared = keys is not None and len(keys.names) > 1
    if models:
        _serve_models(settings, models, keys, is_shared=is_shared)
        return
    from caravan.server.engine.client import EngineClient
    from caravan.server.engine.process import STANDBY_PROGRAM, EngineStartFailed

    model_path = resolved(settings.model)
    draft_model_path = None if settings.draft_model is None else resolved(settings.draft_model)
    start = settings.start_engine(model_path, draft_model_path, is_shared=is_shared)
    engine = EngineClient(
        start,
        hang_seconds=settings.engine_timeout,
        standby_program=STANDBY_PROGRAM if settings.standby else None,
    )
    from caravan.server.serve import bind, run, run_server

    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        asyncio.run(engine.stop())
        fail(_cannot_listen(settings, error))
    try:
        run(run_server(settings, model_path, engine, listener, keys))
    except (EngineStartFailed, ValueError, OSError) as error:
        fail(f"Cannot serve {settings.model}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _serve_models(settings: Settings, models: list[Settings], keys: ApiKeys | None, *, is_shared: bool) -> None:
    """Serve the models of a file; each engine is started by a request."""
    from caravan.server.serve import ModelToServe, bind, run, run_models

    to_serve = []
    for model in models:
        path = resolved(model.model)
        draft_path = None if model.draft_model is None else resolved(model.draft_model)
        to_serve.append(ModelToServe(model, path, model.start_engine(path, draft_path, is_shared=is_shared)))
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        fail(_cannot_listen(settings, error))
    try:
        run(run_models(settings, to_serve, listener, keys))
    except (ValueError, OSError) as error:
        fail(f"Cannot serve {settings.models}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _cannot_listen(settings: Settings, error: OSError) -> str:
    return f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another --host or --port."
