"""caravan bench."""

import time
from pathlib import Path
from typing import Annotated

import typer

from caravan.cli.bench.lengths import NOTATION, parse_concurrency, parse_lengths
from caravan.cli.fail import fail


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
    from caravan.cli.bench import BenchFailed
    from caravan.cli.bench.command import bench_command
    from caravan.cli.bench.run import BenchOptions
    from caravan.cli.tables import console

    for option, value, others in (
        ("--trace", trace, {"--rate": rate, "--concurrency": concurrency, "--prompt": prompt, "--output": output}),
        ("--rate", rate, {"--concurrency": concurrency, "--time-scale": time_scale}),
        ("--no-stream", None if stream else True, {"--max-first-token": max_first_token}),
        ("--no-stream", None if stream else True, {"--max-between-tokens": max_between_tokens}),
    ):
        for other, its_value in others.items():
            if value is not None and its_value is not None:
                fail(f"{option} and {other} exclude each other.", 2)
    if time_scale is not None and trace is None:
        fail("--time-scale is of a trace; give one with --trace.", 2)
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
        fail(str(error), 2)
    try:
        is_all_answered = bench_command(options, json_path=json, plot_path=plot, console=console())
    except BenchFailed as error:
        fail(str(error))
    raise typer.Exit(0 if is_all_answered else 1)
