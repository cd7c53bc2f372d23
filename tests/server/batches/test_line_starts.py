"""Lines that run when the process ends: they are found out after some ends, and harmless ones are answered."""

import asyncio
import sqlite3
from collections.abc import Awaitable
from pathlib import Path

import pytest

from caravan.scheduler.messages import Request
from caravan.server.batches.batches import Batches
from caravan.server.batches.journal import VERSION
from caravan.server.batches.line_isolation import LineIsolation
from caravan.server.batches.line_starts import MAX_STARTS, QUARANTINE_STARTS, LineStarts
from caravan.server.batches.settings import BatchLimits
from caravan.server.engine.output_queue import EngineUnavailable, OutputQueue
from tests.server.batches.open_batches import a_line, create, ended, lines_of, open_batches
from tests.support.fakes import FakeEngineClient, echoes
from tests.support.waiting import until


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process that ends do so without a trace, as if it had been killed."""

    async def nothing(_: LineStarts) -> None:
        pass

    monkeypatch.setattr(LineStarts, "end_all", nothing)


def rows(folder: Path) -> list[tuple[int, int, int]]:
    """Return number, is_running and num_unfinished of all lines that run or ran."""
    with sqlite3.connect(folder / "journal.sqlite") as db:
        found = db.execute("SELECT number, is_running, num_unfinished FROM starts ORDER BY number").fetchall()
    db.close()
    return found


@pytest.mark.usefixtures("kills")
async def test_a_line_that_runs_at_six_ends_of_the_process_has_an_error_and_the_others_are_answered(
    tmp_path: Path,
) -> None:
    folder, batch = tmp_path / "folder", {"id": ""}
    lines = [a_line(name, prompt=name) for name in ("bad", "good", "next")]
    for num_ends in range(2):
        async with open_batches(folder, max_batch_lines=2) as api:
            api.engine.released.clear()
            batch = batch if num_ends else await create(api, lines)
            await until(lambda api=api: api.engine.num_running == 2)
    for _ in range(MAX_STARTS - QUARANTINE_STARTS):  # both are quarantined: only one runs
        async with open_batches(folder, max_batch_lines=2) as api:
            api.engine.released.clear()
            await until(lambda api=api: api.engine.num_running == 1)
            await asyncio.sleep(0.05)
            assert [bytes(request.prompt_token_ids) for request in api.engine.requests] == [b"bad"]
    async with open_batches(folder, echoes(), max_batch_lines=2) as api:
        done = await ended(api, batch["id"])
        assert {bytes(request.prompt_token_ids) for request in api.engine.requests} == {b"good", b"next"}
        assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        assert [line["custom_id"] for line in await lines_of(api, done["output_file_id"])] == ["good", "next"]
        (line,) = await lines_of(api, done["error_file_id"])
        assert (line["custom_id"], line["response"]) == ("bad", None)
        message = "The process ended 6 times while it executed this request."
        assert line["error"] == {"code": "process_ended", "message": message}
        assert api.sample("batch_lines_total", result="failed") == 1
    assert rows(folder) == []


async def test_an_orderly_end_is_no_fault_of_the_lines_that_run(tmp_path: Path) -> None:
    folder, batch = tmp_path / "folder", {"id": ""}
    for num_ends in range(4):
        async with open_batches(folder) as api:
            api.engine.released.clear()
            batch = batch if num_ends else await create(api, [a_line()])
            await until(lambda api=api: api.engine.num_running == 1)
            assert rows(folder) == [(1, 1, 0)]
    async with open_batches(folder) as api:
        assert (await ended(api, batch["id"]))["request_counts"]["completed"] == 1


@pytest.mark.usefixtures("kills")
async def test_a_line_that_waits_for_an_engine_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, num_failures, folder = FakeEngineClient.submit, 0, tmp_path / "folder"

    def broken(*_: object, **__: object) -> OutputQueue:
        nonlocal num_failures
        num_failures += 1
        raise EngineUnavailable

    monkeypatch.setattr(FakeEngineClient, "submit", broken)
    async with open_batches(folder) as api:
        batch = await create(api, [a_line()])
        await until(lambda: num_failures == 5)  # the next pause is long
        await until(lambda: rows(folder) == [(1, 0, 0)])

    def works(engine: FakeEngineClient, request: Request, crash_group: int = 0) -> OutputQueue:
        return submit(engine, request, crash_group)

    monkeypatch.setattr(FakeEngineClient, "submit", works)
    async with open_batches(folder) as api:
        api.engine.released.clear()
        await until(lambda: api.engine.num_running == 1)
        assert rows(folder) == [(1, 1, 0)]
        api.engine.released.set()
        assert (await ended(api, batch["id"]))["request_counts"]["completed"] == 1


async def test_a_cancelled_batch_leaves_no_lines_that_run(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    async with open_batches(folder) as api:
        api.engine.released.clear()
        batch = await create(api, [a_line()])
        await until(lambda: api.engine.num_running == 1)
        await api.http.post(f"/v1/batches/{batch['id']}/cancel")
        await ended(api, batch["id"])
        assert rows(folder) == []


async def test_a_journal_that_cannot_be_written_at_the_end_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(_: LineStarts) -> None:
        raise sqlite3.OperationalError("disk is full")

    async with open_batches(tmp_path / "folder"):
        monkeypatch.setattr(LineStarts, "end_all", fails)
    assert "The batch journal cannot be written: disk is full. The lines that ran count as unfinished." in caplog.text
    Batches(tmp_path / "folder", BatchLimits()).journal.close()  # it was closed


async def test_a_journal_of_the_version_before_is_upgraded(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    async with open_batches(folder) as api:
        api.engine.is_ready = False
        batch = await create(api, [a_line()])
        await until(lambda: api.sample("batch_lines_running") == 1)
    with sqlite3.connect(folder / "journal.sqlite") as db:
        db.execute("DROP TABLE starts")
        db.execute("PRAGMA user_version = 1")
    db.close()
    async with open_batches(folder) as api:
        assert (await ended(api, batch["id"]))["request_counts"]["completed"] == 1
    with sqlite3.connect(folder / "journal.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    db.close()


async def test_a_line_that_runs_alone_waits_for_the_others_and_lets_none_begin() -> None:
    isolation, order = LineIsolation(), list[str]()
    may_end = {name: asyncio.Event() for name in "abcd"}

    async def run(name: str, *, is_alone: bool = False) -> None:
        async with isolation.alone() if is_alone else isolation.together():
            order.append(name)
            await may_end[name].wait()

    def started(runs: list[Awaitable[None]]) -> list["asyncio.Future[None]"]:
        return [asyncio.ensure_future(one) for one in runs]

    tasks = started([run("a"), run("b"), run("c", is_alone=True), run("d")])
    await asyncio.sleep(0.01)
    assert order == ["a", "b"]
    may_end["a"].set()
    await asyncio.sleep(0.01)
    assert order == ["a", "b"]
    may_end["b"].set()
    await asyncio.sleep(0.01)
    assert order == ["a", "b", "c"]
    may_end["c"].set()
    may_end["d"].set()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert order == ["a", "b", "c", "d"]
