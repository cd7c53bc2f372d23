"""caravan serve."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ByteSize

from caravan.cli.fail import fail
from caravan.cli.model_argument import resolved
from caravan.server.observe.logs import set_up_logs
from caravan.server.settings import ENV_PREFIX, Settings, WrongSettings, load_settings


def serve(**flags: str | bool | None) -> None:
    """Serve MODEL over HTTP until Ctrl-C.

    Each option may also be set as a variable or as a key of the file given by --config.
    """
    try:
        settings = load_settings({name: value for name, value in flags.items() if value is not None})
        keys = settings.load_keys()
        settings.check_tls()
    except WrongSettings as error:
        fail(str(error), 2)
    set_up_logs(settings.log_format)
    # Imported late, so that the wrong option is an error at once; the web framework comes while the engine loads.
    from caravan.server.engine.client import EngineClient
    from caravan.server.engine.process import EngineStartFailed

    model_path = resolved(settings.model)
    is_shared = keys is not None and len(keys.names) > 1
    start = settings.start_engine(model_path, is_shared=is_shared)
    engine = EngineClient(start, hang_seconds=settings.engine_timeout)
    from caravan.server.serve import bind, run, run_server

    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        asyncio.run(engine.stop())
        fail(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another --host or --port.")
    try:
        run(run_server(settings, model_path, engine, listener, keys))
    except (EngineStartFailed, ValueError, OSError) as error:
        fail(f"Cannot serve {settings.model}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with a parameter for each setting; pydantic, not typer, checks the values."""
    parameters = []
    for name, field in Settings.model_fields.items():
        variable = ENV_PREFIX + name.upper()
        kind = _metavar(field.annotation)
        text = f"{field.description} [{variable}]"
        if field.default is not None:
            default = field.default.human_readable() if isinstance(field.default, ByteSize) else field.default
            text = f"{field.description} [{variable}; default: {default}]"
        is_switch = field.annotation is bool
        option = (
            typer.Argument(help=text, metavar="MODEL", show_default=False)
            if name == "model"
            else typer.Option(
                f"--{name.replace('_', '-')}", help=text, metavar=None if is_switch else kind, show_default=False
            )
        )
        value = Annotated[bool | None, option] if is_switch else Annotated[str | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=value))
    command.__dict__["__signature__"] = inspect.Signature(parameters)  # which is where inspect looks first
    return command


def _metavar(annotation: Any) -> str:
    """Return how the type of an option reads in the help."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    (kind, *_) = get_args(annotation) or (annotation,)
    return {"int": "NUMBER", "ByteSize": "SIZE", "Path": "FILE"}.get(kind.__name__, "TEXT")
