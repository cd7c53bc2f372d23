"""caravan batch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from caravan.cli.fail import USAGE_ERROR, fail
from caravan.cli.model_argument import complete_model
from caravan.cli.serve_options import like_serve
from caravan.download.errors import ModelNotFound, ModelUnavailable
from caravan.download.resolve import DEFAULT_MODEL
from caravan.server.settings import Settings, WrongSettings, load_settings


def batch(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="JSON Lines file with one request per line.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="JSON Lines file for the answers.")],
    model: Annotated[
        str,
        typer.Option(
            help=str(Settings.model_fields["model"].description), metavar="MODEL", autocompletion=complete_model
        ),
    ] = DEFAULT_MODEL,
    served_model_name: Annotated[str | None, like_serve("served_model_name")] = None,
    chat_template: Annotated[str | None, like_serve("chat_template")] = None,
    device: Annotated[str | None, like_serve("device")] = None,
    dtype: Annotated[str | None, like_serve("dtype")] = None,
    quantization: Annotated[str | None, like_serve("quantization")] = None,
    kv_cache_memory: Annotated[str | None, like_serve("kv_cache_memory")] = None,
    kv_cache_dtype: Annotated[str | None, like_serve("kv_cache_dtype")] = None,
    max_model_len: Annotated[str | None, like_serve("max_model_len")] = None,
    max_num_seqs: Annotated[str | None, like_serve("max_num_seqs")] = None,
    max_batch_tokens: Annotated[str | None, like_serve("max_batch_tokens")] = None,
    draft_model: Annotated[str | None, like_serve("draft_model")] = None,
    merge_lora: Annotated[str | None, like_serve("merge_lora")] = None,
    tensor_parallel: Annotated[str | None, like_serve("tensor_parallel")] = None,
    num_threads: Annotated[str | None, like_serve("num_threads")] = None,
) -> None:
    """Answer the requests in a file, without a server.

    INPUT has the format of OpenAI's batches: `custom_id`, `method`, `url` and
    `body` in each line. OUTPUT gets the answers in the same order. The same
    command continues a batch that was interrupted. The exit code is 1 if a
    request failed.
    """
    options = {name: value for name, value in locals().items() if name not in ("source", "output")}
    try:
        settings = load_settings({name: value for name, value in options.items() if value is not None})
        settings.check_draft_model()
        settings.check_tensor_parallel()
    except WrongSettings as error:
        fail(str(error), USAGE_ERROR)
    # Imported late, so that a wrong option is an error at once.
    from tqdm import tqdm

    from caravan.offline.batch import BatchFileError, journal_of, run_batch

    bar = None

    def show(num_answered: int, num_failed: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=num_answered, unit=" lines", file=sys.stderr, mininterval=0.5)
        bar.set_postfix({"failed": num_failed}, refresh=False)
        bar.update(num_answered - bar.n)

    try:
        counts = run_batch(settings, source, output, show)
    except BatchFileError as error:
        for problem in error.problems:
            place = str(source) if problem.line is None else f"{source}, line {problem.line}"
            typer.echo(f"{place}: {problem.message}", err=True)
        fail(str(error))
    except (ModelNotFound, ModelUnavailable) as error:
        fail(str(error))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        fail(f"Cannot answer {source}: {error}")
    except KeyboardInterrupt:
        if journal_of(output).exists():
            typer.echo("Interrupted. The same command continues the batch.", err=True)
        raise SystemExit(130) from None
    finally:
        if bar is not None:
            bar.close()
    typer.echo(f"{output} has the answers to {counts.total} requests; {counts.failed} failed.", err=True)
    if counts.failed:
        raise SystemExit(1)
