"""A batch without a server: the requests in a file, answered into another one."""

import asyncio
import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from caravan.offline.batch_options import answer_options
from caravan.offline.engine import LocalEngine
from caravan.offline.loading import load_model
from caravan.offline.served_engine import ServedEngine
from caravan.server.batches.answer import LineError, write_answers
from caravan.server.batches.batch_store import BatchStore, StoredBatch
from caravan.server.batches.file_store import FileStore
from caravan.server.batches.folder import BatchFolder, sync_folder
from caravan.server.batches.input_lines import check_lines
from caravan.server.batches.journal import Journal
from caravan.server.batches.line_app import LineApp
from caravan.server.batches.line_runs import LineRuns
from caravan.server.batches.line_starts import LineStarts
from caravan.server.batches.objects import BatchError
from caravan.server.batches.settings import BatchLimits
from caravan.server.batches.slots import Slots
from caravan.server.generation.admission import Admission
from caravan.server.generation.context import NO_KEY
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.generation.text_model import TextModel
from caravan.server.http.body_memory import BodyMemory
from caravan.server.observe.metrics import Metrics
from caravan.server.settings import Settings

RETRY_SECONDS = 1.0
_NO_LIMIT = 2**62
_COPIED_BYTES = 2**20  # at once
_ANY_ENDPOINT = ""  # each line has its own

Progress = Callable[[int, int, int], None]


class BatchFileError(ValueError):
    """A file cannot be used; the text is for the user, and `problems` are those of lines."""

    def __init__(self, message: str, problems: list[BatchError] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []


@dataclass(frozen=True)
class BatchCounts:
    """Lines of a batch that has ended."""

    total: int
    failed: int  # the status of the response was not 200


def journal_of(output: Path) -> Path:
    """Return the folder, beside the output, with the answers of a batch that has not ended."""
    return output.with_name(f"{output.name}.journal")


def run_batch(settings: Settings, source: Path, output: Path, on_progress: Progress) -> BatchCounts:
    """Answer the lines of `source` into `output`, in their order; the same call again continues a batch.

    `on_progress` is called with the numbers of answered, failed and all lines. The answers are those that a server with
    these settings gives. Until the output is complete, they are in a folder beside it.
    A batch that was begun with another model or other options is refused: its answers would be mixed.
    Raises BatchFileError, FolderError, OSError, RuntimeError if the engine fails, and what `load_model` raises.
    """
    folder_path = journal_of(output)
    shutil.rmtree(_ended(folder_path), ignore_errors=True)  # of a process that was killed meanwhile
    if output.exists() and not folder_path.exists():
        raise BatchFileError(f"{output} exists. Remove it, or choose another OUTPUT.")
    if not source.is_file():
        raise BatchFileError(f"{source} does not exist or is not a file.")
    if not output.parent.is_dir():
        raise BatchFileError(f"The folder of {output} does not exist.")
    options = answer_options(settings)
    try:
        counts = asyncio.run(_run(settings, options, source, output, on_progress))
    except BatchFileError as error:
        if error.problems:  # the journal has no answers
            _remove(folder_path)
        raise
    _remove(folder_path)
    return counts


async def _run(
    settings: Settings, options: dict[str, str], source: Path, output: Path, on_progress: Progress
) -> BatchCounts:
    with closing(BatchFolder(journal_of(output))) as folder, closing(Journal(folder.journal)) as journal:
        limits = BatchLimits(_NO_LIMIT, _NO_LIMIT, _NO_LIMIT)
        with closing(FileStore(folder, journal, limits, time.time)) as files:
            store = BatchStore(journal, time.time, files)
            batch = await _begun(store, files, source, options)
            await _answer_all(settings, store, files, batch, on_progress)
            counts = (await store.get(batch.id)).shown.request_counts
            none = LineError("not_run", "This request was not executed.")
            new = await files.run(lambda: write_answers(files.new_part(), journal.path, batch.id, "all", none))
            assert new is not None, "a batch has lines"
            await files.run(_move, files.path_of(new.id), output)
    return BatchCounts(counts.total, counts.failed)


def _ended(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}.ended")


def _remove(journal: Path) -> None:
    """Remove a journal; a process that is killed meanwhile leaves nothing that the next one takes for a batch."""
    journal.rename(_ended(journal))
    sync_folder(journal.parent)
    shutil.rmtree(_ended(journal))


def _move(path: Path, output: Path) -> None:
    path.replace(output)
    sync_folder(output.parent)


async def _begun(store: BatchStore, files: FileStore, source: Path, options: dict[str, str]) -> StoredBatch:
    """Return the batch in the journal, or a new one, with its lines; `options` are those that change answers."""
    unfinished = await store.unfinished()
    if unfinished:
        batch = unfinished[0]
        journal, begun_with = store.journal.path.parent, batch.shown.metadata or {}
        if await files.run(_digest, source) != await files.run(_digest, files.path_of(batch.shown.input_file_id)):
            raise BatchFileError(f"{journal} has the answers to another INPUT. Remove it to begin again.")
        if others := ", ".join(flag for flag, value in options.items() if begun_with.get(flag) != value):
            raise BatchFileError(
                f"{journal} has answers of another {others}. Use the same again, or remove it to begin again."
            )
    else:
        part = await files.run(files.new_part)
        await files.run(_copy, source, part.write)
        new = await files.run(part.complete)
        await files.add(NO_KEY, new, source.name, "batch")
        batch = await store.create(NO_KEY, new.id, _ANY_ENDPOINT, options, expires=False)
    if batch.shown.status == "validating":
        path = files.path_of(batch.shown.input_file_id)
        checked = await files.run(check_lines, path, None, files.limits)
        if checked.errors:
            await store.fail(batch.id, checked.errors)
            raise BatchFileError(f"{source} cannot be used as a batch.", checked.errors)
        await store.begin(batch, checked.lines)
        batch = await store.get(batch.id)
    return batch


async def _answer_all(
    settings: Settings, store: BatchStore, files: FileStore, batch: StoredBatch, on_progress: Progress
) -> None:
    """Run the lines that have no response."""
    pending = await store.unanswered(batch.id)
    total, num_failed = batch.shown.request_counts.total, batch.shown.request_counts.failed
    num_answered = total - len(pending)
    if not pending:
        return

    def count(status_code: int) -> None:
        nonlocal num_answered, num_failed
        num_answered += 1
        num_failed += status_code != 200
        on_progress(num_answered, num_failed, total)

    local, model = await asyncio.to_thread(load_model, settings)
    on_progress(num_answered, num_failed, total)
    try:
        engine = ServedEngine(local)
        served = _served(settings, local, model, engine)
        app = LineApp(ServedModels([served]), BodyMemory(_NO_LIMIT), {})
        slots = Slots(local.report.config.max_num_seqs)
        starts = LineStarts(store.journal)
        lines = LineRuns(store, starts, files, slots, app.answer, lambda: engine.is_ready, RETRY_SECONDS)
        path = files.path_of(batch.shown.input_file_id)
        running = asyncio.ensure_future(lines.run(batch.id, NO_KEY, path, pending, count))
        try:
            await asyncio.wait({running, engine.failure}, return_when=asyncio.FIRST_COMPLETED)
            if engine.failure.done():
                raise RuntimeError(f"The engine failed: {engine.failure.exception()}")
            running.result()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running
            if not engine.failure.done():  # interrupted: no line is to blame
                await starts.end_all()
            engine.failure.cancel()
            served.executors.close()
            served.grammar_check.close()
    finally:
        await asyncio.to_thread(local.close)
        if model.chat_template is not None:
            model.chat_template.close()


def _served(settings: Settings, local: LocalEngine, model: TextModel, engine: ServedEngine) -> ServedModel:
    """Return the model with the services of a server; its queue has no limit."""
    metrics = Metrics(settings.names[0], local.report.config)
    return ServedModel(
        name=settings.names[0],
        aliases=settings.names[1:],
        max_model_len=model.max_model_len,
        engine=engine,
        tokenizer=model.tokenizer,
        chat_template=model.chat_template,
        shown_token_ids=model.shown_token_ids,
        defaults=model.defaults,
        metrics=metrics,
        admission=Admission(local.report.config, metrics, QueueLimits(_NO_LIMIT, _NO_LIMIT)),
    )


def _copy(source: Path, write: Callable[[bytes], None]) -> None:
    with source.open("rb") as file:
        while data := file.read(_COPIED_BYTES):
            write(data)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
