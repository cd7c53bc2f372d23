"""Limits of batches: how many a key may have, what they take on disk and in memory."""

from pathlib import Path

import pytest

from caravan.server.batches import runner
from caravan.server.batches.answer import LineAnswer
from caravan.server.batches.batch_store import WINDOW_SECONDS, BatchStore
from caravan.server.batches.batches import Batches
from caravan.server.batches.file_store import NewFile
from caravan.server.batches.input_lines import InputLine
from caravan.server.batches.settings import BatchLimits
from caravan.server.http.api_keys import ApiKeys
from tests.server.batches.open_batches import (
    Clock,
    a_line,
    create,
    ended,
    json_lines,
    lines_of,
    message_of,
    open_batches,
    upload,
)
from tests.server.openai.api import COMPLETIONS, answered
from tests.support.waiting import until

ANN, BOB = {"authorization": "Bearer key-of-ann"}, {"authorization": "Bearer key-of-bob"}
KEYS = ApiKeys({"ann": "key-of-ann", "bob": "key-of-bob"})


async def test_threat_35_a_key_has_a_limited_number_of_batches_that_have_not_ended(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", limits=BatchLimits(max_open_batches=2), keys=KEYS) as api:
        api.engine.released.clear()
        batches = [await create(api, [a_line()], headers=ANN) for _ in range(2)]
        body = {"input_file_id": batches[0]["input_file_id"], "endpoint": COMPLETIONS, "completion_window": "24h"}
        refused = await api.http.post("/v1/batches", json=body, headers=ANN)
        assert message_of(refused, 429).startswith("2 batches have not ended; the limit is 2 (--batch-max-open).")
        assert refused.headers["retry-after"] == "60"
        await create(api, [a_line()], headers=BOB)
        await api.http.post(f"/v1/batches/{batches[0]['id']}/cancel", headers=ANN)
        await ended(api, batches[0]["id"], ANN)
        again = answered(await api.http.post("/v1/batches", json=body, headers=ANN))
        api.engine.released.set()
        assert (await ended(api, again["id"], ANN))["status"] == "completed"


async def test_the_oldest_ended_batches_of_a_key_are_forgotten(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", limits=BatchLimits(max_kept_batches=2), keys=KEYS) as api:
        bobs = await ended(api, (await create(api, [a_line()], headers=BOB))["id"], BOB)
        done = [await ended(api, (await create(api, [a_line()], headers=ANN))["id"], ANN) for _ in range(4)]
        listed = answered(await api.http.get("/v1/batches", headers=ANN))
        assert [batch["id"] for batch in listed["data"]] == [batch["id"] for batch in done[:0:-1]]
        message_of(await api.http.get(f"/v1/batches/{done[0]['id']}", headers=ANN), 404)
        assert len(await lines_of(api, done[0]["output_file_id"], ANN)) == 1
        assert answered(await api.http.get("/v1/batches", headers=BOB))["data"] == [bobs]


async def test_threat_35_lines_and_answers_count_as_files_do_until_the_end_of_their_batch(tmp_path: Path) -> None:
    folder, lines = tmp_path / "folder", [a_line("a" * 500), a_line("b" * 500)]
    form = {"file": ("in.jsonl", b"x" * 9000)}
    limits = BatchLimits(max_folder_bytes=len(json_lines(lines)) + 9000 + 1000)
    async with open_batches(folder, limits=limits) as api:
        api.engine.released.clear()
        batch = await create(api, lines)
        await until(lambda: api.engine.num_running == 2)
        refused = await api.http.post("/v1/files", files=form, data={"purpose": "batch"})
        assert "--batch-folder-size" in message_of(refused, 413)
    async with open_batches(folder, limits=limits) as api:
        api.engine.released.clear()
        refused = await api.http.post("/v1/files", files=form, data={"purpose": "batch"})
        assert "--batch-folder-size" in message_of(refused, 413)
        api.engine.released.set()
        done = await ended(api, batch["id"])
        assert answered(await api.http.delete(f"/v1/files/{done['output_file_id']}"))["deleted"]
        await upload(api, b"x" * 9000)


async def test_the_bytes_of_a_key_are_those_of_its_files_when_its_batches_have_ended(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    batches = Batches(folder, BatchLimits())
    try:
        lines = [a_line("a"), a_line("b")]
        new = await batches.files.run(_write, batches, json_lines(lines))
        batches.files.reserve("ann", new.num_bytes)
        await batches.files.add("ann", new, "in.jsonl", "batch")
        before = batches.files.bytes_of_key["ann"]
        batch = await batches.batches.create("ann", new.id, COMPLETIONS, {})
        await batches.batches.begin(batch, [InputLine(1, "a", 0, 9), InputLine(2, "b", 10, 9)])
        begun = batches.files.bytes_of_key["ann"]
        for _ in range(2):  # the second one is not stored
            await batches.batches.answer(batch.id, 1, LineAnswer(200, "r", b"x" * 1000))
        assert batches.files.bytes_of_key["ann"] == begun + 1000 > before + 1000
    finally:
        await batches.close()
    batches = Batches(folder, BatchLimits())
    try:
        assert batches.files.bytes_of_key["ann"] == begun + 1000
        await batches.batches.end(batch, "cancelled", None, None)
        assert batches.files.bytes_of_key["ann"] == before
    finally:
        await batches.close()


async def test_a_batch_whose_lines_have_no_room_fails(tmp_path: Path) -> None:
    lines = json_lines([a_line("a"), a_line("b")])
    async with open_batches(tmp_path / "folder", limits=BatchLimits(max_folder_bytes=len(lines) + 100)) as api:
        done = await ended(api, (await create(api, lines))["id"])
        assert (done["status"], done["request_counts"]["total"]) == ("failed", 0)
        (error,) = done["errors"]["data"]
        assert error["code"] == "batch_folder_full"
        assert "--batch-folder-size" in error["message"]
        assert not api.engine.requests


async def test_the_lines_of_a_batch_are_in_memory_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[int] = []
    unanswered = BatchStore.unanswered

    async def seen(store: BatchStore, batch_id: str, limit: int = -1) -> list[InputLine]:
        lines = await unanswered(store, batch_id, limit)
        pages.append(len(lines))
        return lines

    monkeypatch.setattr(BatchStore, "unanswered", seen)
    monkeypatch.setattr(runner, "PAGE_LINES", 2)
    async with open_batches(tmp_path / "folder") as api:
        done = await ended(api, (await create(api, [a_line(f"{number}") for number in range(5)]))["id"])
        assert done["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
        assert pages == [2, 2, 1, 0]
        written = await lines_of(api, done["output_file_id"])
        assert [line["custom_id"] for line in written] == ["0", "1", "2", "3", "4"]


async def test_threat_35_the_batches_of_a_removed_key_wait_until_it_is_back_or_they_expire(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, clock = tmp_path / "folder", Clock()
    async with open_batches(folder, keys=KEYS, clock=clock) as api:
        api.engine.released.clear()
        first, second = [await create(api, [a_line()], headers=ANN) for _ in range(2)]
        await until(lambda: api.engine.num_running == 2)
        await api.http.post(f"/v1/batches/{second['id']}/cancel", headers=ANN)
        await ended(api, second["id"], ANN)
    for keys in (ApiKeys({"bob": "key-of-bob"}), None):
        async with open_batches(folder, keys=keys, clock=clock) as api:
            bobs = await create(api, [a_line()], headers=BOB if keys else None)
            assert (await ended(api, bobs["id"], BOB if keys else None))["status"] == "completed"
            assert [request.key for request in api.engine.requests] == ["bob" if keys else ""]
            assert f"The batch {first['id']} waits: the server has no key 'ann'." in caplog.text
    async with open_batches(folder, keys=KEYS, clock=clock) as api:
        assert (await ended(api, first["id"], ANN))["status"] == "completed"
        api.engine.released.clear()
        third = await create(api, [a_line()], headers=ANN)
        await until(lambda: api.engine.num_running == 1)
    async with open_batches(folder, keys=ApiKeys({"bob": "key-of-bob"}), clock=clock) as api:
        clock.seconds += WINDOW_SECONDS
        await until(lambda: api.sample("batch_ends_total", status="expired") == 1)
        assert not api.engine.requests
    async with open_batches(folder, keys=KEYS, clock=clock) as api:
        done = await ended(api, third["id"], ANN)
        (line,) = await lines_of(api, done["error_file_id"], ANN)
        assert line["error"]["code"] == "batch_expired"


def _write(batches: Batches, content: bytes) -> NewFile:
    part = batches.files.new_part()
    part.write(content)
    return part.complete()


async def test_the_batches_of_a_key_continue_when_the_server_gets_the_key_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    async with open_batches(folder, keys=KEYS) as api:
        api.engine.released.clear()
        begun = await create(api, [a_line()], headers=ANN)
        await until(lambda: api.engine.num_running == 1)
    keys = ApiKeys({"bob": "key-of-bob"})
    async with open_batches(folder, keys=keys) as api:
        bobs = await create(api, [a_line()], headers=BOB)
        assert (await ended(api, bobs["id"], BOB))["status"] == "completed"
        assert (await api.http.get(f"/v1/batches/{begun['id']}", headers=ANN)).status_code == 401
        keys.replace(KEYS)
        assert (await ended(api, begun["id"], ANN))["status"] == "completed"
