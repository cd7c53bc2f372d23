"""The command line: `caravan serve`, `pull`, `inspect`, `plan`, `chat`, `bench`, `explain` and `top`."""

import asyncio
import inspect
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer
from pydantic import ByteSize

from caravan.server.bench.lengths import NOTATION, parse_concurrency, parse_lengths
from caravan.server.logs import set_up_logs
from caravan.server.model_errors import ModelNotFound, ModelUnavailable
from caravan.server.model_store import DEFAULT_MODEL, resolve_model
from caravan.server.settings import ENV_PREFIX, Settings, WrongSettings, load_settings
from caravan.server.version_option import Version

_FILE_COLUMNS = 140  # of tables that do not go to a terminal

Model = Annotated[str, typer.Argument(help=str(Settings.model_fields["model"].description))]


def main() -> None:
    """Run the command named by the arguments of the process."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(caravan)
    app.command("serve")(_with_options(serve))
    app.command("pull")(pull)
    app.command("inspect")(inspect_)
    app.command("plan")(plan)
    app.command("chat")(chat)
    app.command("bench")(bench)
    app.command("explain")(explain)
    app.command("top")(top)
    app()


def caravan(_: Version = False) -> None:
    """An inference server for Llama models: continuous batching, a paged KV cache, OpenAI-style HTTP."""


def serve(**flags: str | bool | None) -> None:
    """Serve MODEL over HTTP until Ctrl-C.

    Each option may also be set as a variable or as a key of the file given by --config.
    """
    try:
        settings = load_settings({name: value for name, value in flags.items() if value is not None})
        keys = settings.load_keys()
        settings.check_tls()
    except WrongSettings as error:
        _fail(str(error), 2)
    set_up_logs(settings.log_format)
    # Imported late, so that the wrong option is an error at once; the web framework comes while the engine loads.
    from caravan.server.engine_client import EngineClient
    from caravan.server.engine_process import EngineStartFailed

    model_path = _resolved(settings.model)
    is_shared = keys is not None and len(keys.names) > 1
    start = settings.start_engine(model_path, is_shared=is_shared)
    engine = EngineClient(start, hang_seconds=settings.engine_timeout)
    from caravan.server.startup import bind, run, run_server

    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        asyncio.run(engine.stop())
        _fail(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another --host or --port.")
    try:
        run(run_server(settings, model_path, engine, listener, keys))
    except (EngineStartFailed, ValueError, OSError) as error:
        _fail(f"Cannot serve {settings.model}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def pull(model: Model = DEFAULT_MODEL) -> None:
    """Fetch MODEL so that a later start needs no network; print its path."""
    typer.echo(_resolved(model))


def inspect_(model: Model = DEFAULT_MODEL) -> None:
    """Say what MODEL is: its architecture, what it costs, and what of it would be refused."""
    from caravan.server.model_report import inspect_model, text_of

    path = _resolved(model)
    try:
        typer.echo(text_of(inspect_model(path)))
    except (ValueError, OSError) as error:
        _fail(f"Refused: {error}")


def plan(
    model: Model = DEFAULT_MODEL,
    memory: Annotated[str | None, typer.Option(help="Memory for weights and KV pool. Default: what is free.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 512,
    output: Annotated[int, typer.Option(help="Tokens of an answer.", min=1)] = 128,
    kv_cache_memory: Annotated[str | None, typer.Option(help="As for serve, as are the next ones.")] = None,
    dtype: Annotated[str | None, typer.Option()] = None,
    quantization: Annotated[str | None, typer.Option()] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option()] = None,
    max_model_len: Annotated[str | None, typer.Option()] = None,
    max_num_seqs: Annotated[str | None, typer.Option()] = None,
    max_batch_tokens: Annotated[str | None, typer.Option()] = None,
    block_size: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Say how many requests of MODEL fit into some memory, before it is served."""
    flags = {
        "kv_cache_memory": kv_cache_memory,
        "dtype": dtype,
        "quantization": quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_batch_tokens": max_batch_tokens,
        "block_size": block_size,
    }
    try:
        settings = load_settings({"model": model} | {name: value for name, value in flags.items() if value is not None})
        memory_bytes = None if memory is None else load_settings({"kv_cache_memory": memory}).kv_cache_memory
    except WrongSettings as error:
        _fail(str(error).replace("--kv-cache-memory", "--memory") if memory else str(error), 2)
    from caravan.scheduler.memory import free_memory_bytes
    from caravan.server.model_report import plan_model, text_of

    path = _resolved(model)
    try:
        rows = plan_model(
            path,
            memory_bytes=free_memory_bytes() if memory_bytes is None else int(memory_bytes),
            prompt_tokens=prompt,
            output_tokens=output,
            dtype=settings.dtype,
            quantization=settings.quantization,
            kv_cache_dtype=settings.kv_cache_dtype,
            limits=settings.start_engine(path).limits,
        )
    except (ValueError, OSError) as error:
        _fail(f"Cannot plan {model}: {error}")
    typer.echo(text_of(rows))


def chat(
    url: Annotated[str, typer.Option(help="Where the server is.", metavar="URL")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Name of the model. Default: the server's first.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest word, 2 is wild.", min=0, max=2)] = 0.2,
) -> None:
    """Talk with a running server."""
    from caravan.server.terminal_chat import run_chat

    code = run_chat(
        url, model=model, system=system, temperature=temperature, stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr
    )
    raise typer.Exit(code)


def explain(
    name: Annotated[str, typer.Argument(help="Id of an answer, or of an exchange (x-request-id).", metavar="ID")],
    url: Annotated[str, typer.Option(help="Where the server is.", metavar="URL")] = "http://127.0.0.1:8000",
) -> None:
    """Say where the time of a request went. The key, if one is needed, is in CARAVAN_API_KEY."""
    from rich.console import Console

    from caravan.server.explain_command import ExplainFailed, fetch_story, print_story

    try:
        print_story(fetch_story(url, name), Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS))
    except ExplainFailed as error:
        _fail(str(error))


def top(
    url: Annotated[str, typer.Option(help="Where the server is.", metavar="URL")] = "http://127.0.0.1:8000",
) -> None:
    """Watch the engine: batch, queue and KV pool. The key, if one is needed, is in CARAVAN_API_KEY."""
    from rich.console import Console

    from caravan.server.top import TopFailed, watch

    try:
        watch(url, Console())
    except TopFailed as error:
        _fail(str(error))
    except KeyboardInterrupt:
        return


def bench(
    url: Annotated[str, typer.Argument(help="Where the server is, of any make with OpenAI's API.")],
    model: Annotated[str | None, typer.Option(help="Name of the model. Default: the server's first.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Requests at a time; several loads with commas. Default: 1,8,32.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Instead: so many arrivals a second, at random.", min=0.001)
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Instead: times and lengths of a trace (Azure's CSV).")] = None,
    time_scale: Annotated[
        float | None, typer.Option(help="Multiplies times of a trace; 0.5 is twice as fast.", min=0)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help=f"Tokens of a prompt: {NOTATION}. Default: 128.")] = None,
    output: Annotated[str | None, typer.Option(help="Tokens of an answer, the same way. Default: 128.")] = None,
    shared_prefix: Annotated[int, typer.Option(help="Tokens before each prompt that are always the same.", min=0)] = 0,
    requests: Annotated[int | None, typer.Option(help="Requests of each load.", min=1)] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds after which no request is sent.", min=0)] = None,
    stream: Annotated[bool, typer.Option(help="Stream the answers.")] = True,
    chat: Annotated[bool, typer.Option(help="Ask /v1/chat/completions.")] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_first_token: Annotated[float | None, typer.Option(help="Bound for goodput, in milliseconds.")] = None,
    max_between_tokens: Annotated[float | None, typer.Option(help="The same, for a request's mean gap.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each request.", min=0.001)] = 600.0,
    seed: Annotated[
        int | None, typer.Option(help="Of prompts, lengths and arrivals. Default: another one each time.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latencies into this file: .png, .svg or .pdf.")] = None,
) -> None:
    """Put load on a server and say how it answers: latencies, throughput, errors."""
    from rich.console import Console

    from caravan.server.bench import BenchFailed
    from caravan.server.bench.command import bench_command
    from caravan.server.bench.run import BenchOptions

    for option, value, others in (
        ("--trace", trace, {"--rate": rate, "--concurrency": concurrency, "--prompt": prompt, "--output": output}),
        ("--rate", rate, {"--concurrency": concurrency, "--time-scale": time_scale}),
        ("--no-stream", None if stream else True, {"--max-first-token": max_first_token}),
        ("--no-stream", None if stream else True, {"--max-between-tokens": max_between_tokens}),
    ):
        for other, its_value in others.items():
            if value is not None and its_value is not None:
                _fail(f"{option} and {other} exclude each other.", 2)
    if time_scale is not None and trace is None:
        _fail("--time-scale is of a trace; give one with --trace.", 2)
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_COLUMNS)
    try:
        options = BenchOptions(
            url=url,
            model=model,
            api_key=api_key,
            is_chat=chat,
            is_stream=stream,
            concurrency=parse_concurrency(concurrency or "1,8,32"),
            rate=rate,
            trace=trace,
            time_scale=1.0 if time_scale is None else time_scale,
            prompt=parse_lengths(prompt or "128"),
            output=parse_lengths(output or "128"),
            shared_prefix_tokens=shared_prefix,
            max_requests=requests,
            max_seconds=duration,
            timeout_seconds=timeout,
            max_first_token_seconds=None if max_first_token is None else max_first_token / 1000,
            max_between_tokens_seconds=None if max_between_tokens is None else max_between_tokens / 1000,
            temperature=temperature,
            seed=int(time.time()) if seed is None else seed,  # else a second run would find its prompts cached
        )
    except ValueError as error:
        _fail(str(error), 2)
    try:
        is_all_answered = bench_command(options, json_path=json, plot_path=plot, console=console)
    except BenchFailed as error:
        _fail(str(error))
    raise typer.Exit(0 if is_all_answered else 1)


def _resolved(model: str) -> Path:
    try:
        return resolve_model(model, lambda line: typer.echo(line, err=True))
    except (ModelNotFound, ModelUnavailable) as error:
        _fail(str(error))


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(" ".join(message.split()), err=True)
    raise SystemExit(code)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
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


if __name__ == "__main__":
    main()
