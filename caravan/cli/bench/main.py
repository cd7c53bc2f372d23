"""caravan bench."""

import time
from pathlib import Path
from typing import Annotated

import typer

from caravan.cli.bench.lengths import NOTATION, parse_concurrency, parse_lengths
from caravan.cli.fail import USAGE_ERROR, fail


def bench(
    url: Annotated[str, typer.Argument(help="Address of any server with an OpenAI-compatible API.", metavar="URL")],
    model: Annotated[str | None, typer.Option(help="Model name. Default: the first that the server lists.")] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help="Numbers of concurrent requests, one load each. Default: 1,8,32."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Mean requests per second, with Poisson arrivals, instead of --concurrency.", min=0.001),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="CSV file with arrival times and lengths, in the format of Azure's LLM traces.")
    ] = None,
    time_scale: Annotated[
        float | None, typer.Option(help="Factor for the times of a trace; 0.5 is twice as fast.", min=0)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help=f"Prompt length, in tokens: {NOTATION}. Default: 128.")] = None,
    output: Annotated[str | None, typer.Option(help="Output length, in the same notation. Default: 128.")] = None,
    shared_prefix: Annotated[
        int, typer.Option(help="Length of a prefix that all prompts share, in tokens.", min=0)
    ] = 0,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Number of requests of each load. Default: 4 times the concurrency, or 100 with --rate.", min=1
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Time after which no more requests are sent, in seconds.", min=0)
    ] = None,
    stream: Annotated[bool, typer.Option(help="Streamed or whole responses.")] = True,
    chat: Annotated[bool, typer.Option(help="Use /v1/chat/completions instead of /v1/completions.")] = False,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.", min=0, max=2)] = 0.0,
    max_first_token: Annotated[
        float | None, typer.Option(help="Goodput limit for the time to the first token, in milliseconds.")
    ] = None,
    max_between_tokens: Annotated[
        float | None, typer.Option(help="Goodput limit for the mean time between tokens, in milliseconds.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Time limit of each request, in seconds.", min=0.001)] = 600.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed for prompts, lengths and arrivals. Default: the current time.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="API key.", envvar="OPENAI_API_KEY", show_envvar=True)] = None,
    json: Annotated[Path | None, typer.Option(help="File for all results, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a plot of latencies: .png, .svg or .pdf.")] = None,
) -> None:
    """Measure the latency, throughput and errors of a server.

    The exit code is 1 if a request failed.
    """
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
                fail(f"{option} and {other} cannot be combined. Leave one out.", USAGE_ERROR)
    if time_scale is not None and trace is None:
        fail("--time-scale needs --trace. Add a trace, or leave it out.", USAGE_ERROR)
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
        fail(str(error), USAGE_ERROR)
    try:
        is_all_answered = bench_command(options, json_path=json, plot_path=plot, console=console())
    except BenchFailed as error:
        fail(str(error))
    raise typer.Exit(0 if is_all_answered else 1)
