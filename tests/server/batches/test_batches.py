"""Batches through the application: their statuses, files, errors, ends and keys."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caravan.scheduler.messages import Request
from caravan.server.batches import line_runs
from caravan.server.batches.answer import LineAnswer
from caravan.server.batches.batch_store import WINDOW_SECONDS, BatchStore
from caravan.server.batches.batches import Batches
from caravan.server.batches.input_lines import MAX_ERRORS
from caravan.server.batches.line_runs import Answer
from caravan.server.batches.settings import BatchLimits
from caravan.server.engine.output_queue import EngineUnavailable, ModelLoadFailed, OutputQueue
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.http.api_keys import ApiKeys
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.batches.open_batches import (
    Clock,
    a_line,
    create,
    ended,
    lines_of,
    message_of,
    open_batches,
    retrieve,
    upload,
)
from tests.server.openai.api import CHAT, COMPLETIONS, a_chat, answered, open_api
from tests.support.fakes import FakeEngineClient, echoes, says
from tests.support.waiting import until

ANN, BOB = {"authorization": "Bearer key-of-ann"}, {"authorization": "Bearer key-of-bob"}
KEYS = ApiKeys({"ann": "key-of-ann", "bob": "key-of-bob"})


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("id", "created", "created_at")}


async def test_the_answer_to_a_line_is_that_to_the_request(tmp_path: Path, chat_ml: ChatTemplate) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"model": "fake", "prompt": "hi", "logprobs": 2, "max_tokens": 3}),
        (CHAT, a_chat("Hello") | {"logprobs": True, "n": 2}),
        ("/v1/embeddings", {"model": "fake", "input": ["a", "bc"]}),
        ("/v1/responses", {"model": "fake", "input": "Hello", "temperature": 0}),
        (CHAT, a_chat() | {"temperature": 7}),
        (CHAT, a_chat() | {"model": "nobody"}),
    ]
    async with open_batches(tmp_path / "folder", chat_template=chat_ml) as api:
        for url, body in requests:
            live = await api.http.post(url, json=body)
            line = {"custom_id": "x", "method": "POST", "url": url, "body": body}
            batch = await ended(api, (await create(api, [line], endpoint=url))["id"])
            assert batch["status"] == "completed"
            is_done = live.status_code == 200
            assert batch["request_counts"] == {"total": 1, "completed": is_done, "failed": not is_done}
            assert (batch["output_file_id"] is not None, batch["error_file_id"] is not None) == (is_done, not is_done)
            (written,) = await lines_of(api, batch["output_file_id"] or batch["error_file_id"])
            assert written["custom_id"] == "x"
            assert written["error"] is None
            assert written["response"]["status_code"] == live.status_code
            answer = written["response"]["body"]
            if url == "/v1/responses":
                answer["output"][0].pop("id")
                expected = live.json()
                expected["output"][0].pop("id")
                for one in (answer, expected):
                    one.pop("completed_at", None)
                assert without_ids(answer) == without_ids(expected)
            else:
                assert without_ids(answer) == without_ids(live.json())


async def test_a_line_runs_after_requests_of_clients_and_with_the_key_of_its_batch(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", keys=KEYS) as api:
        batch = await create(api, [a_line(priority=-5)], headers=ANN)
        await ended(api, batch["id"], ANN)
        (request,) = api.engine.requests
        assert (request.urgency, request.key, request.priority) == (1, "ann", -5)
        line = a_line()
        await api.http.post(line["url"], json=line["body"], headers=ANN)
        assert request.cache_salt == api.engine.requests[1].cache_salt, "it shares the prefixes of its key"


@pytest.mark.parametrize("keys", [None, ApiKeys({"bob": "key-of-bob"})])
async def test_a_line_whose_key_is_not_known_shares_prefixes_with_nobody(
    keys: ApiKeys | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Answer] = []
    monkeypatch.setattr(Batches, "connect", lambda _, answer, *_args, **_options: answers.append(answer))
    async with open_api(keys=keys, batches=Batches(tmp_path / "folder", BatchLimits())) as api:
        for _ in range(2):
            await answers[0]("ann", COMPLETIONS, json.dumps(a_line()["body"]).encode())
        first, second = (request.cache_salt for request in api.engine.requests)
    assert first != second
    assert not first.startswith("\n")


async def test_no_more_lines_run_at_a_time_than_there_are_slots(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", max_batch_lines=2) as api:
        api.engine.released.clear()
        batch = await create(api, [a_line(f"{number}") for number in range(5)])
        await until(lambda: api.engine.num_running == 2)
        await asyncio.sleep(0.05)
        assert api.engine.num_running == 2
        assert (api.sample("batch_lines_running"), api.sample("batch_lines_waiting")) == (2, 3)
        assert (await retrieve(api, batch["id"]))["status"] == "in_progress"
        api.engine.released.set()
        assert (await ended(api, batch["id"]))["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
        assert api.sample("batch_lines_total", result="done") == 5
        await until(lambda: api.sample("batch_ends_total", status="completed") == 1)
        assert api.sample("batch_lines_waiting") == 0


async def test_keys_share_the_slots(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", max_batch_lines=2, keys=KEYS) as api:
        api.engine.released.clear()
        await create(api, [a_line(f"{number}") for number in range(5)], headers=ANN)
        await until(lambda: api.engine.num_running == 2)
        bobs = await create(api, [a_line()], headers=BOB)
        await until(lambda: api.sample("batch_lines_waiting") == 4)
        await asyncio.sleep(0.05)
        api.engine.released.set()
        await ended(api, bobs["id"], BOB)
        keys = [request.key for request in api.engine.requests]
        assert "bob" in keys[:4]


async def test_threat_35_files_and_batches_of_another_key_do_not_exist(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", keys=KEYS) as api:
        batch = await ended(api, (await create(api, [a_line()], headers=ANN))["id"], ANN)
        for file_id in (batch["input_file_id"], batch["output_file_id"]):
            for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
                assert (await api.http.get(path, headers=ANN)).status_code == 200
                message_of(await api.http.get(path, headers=BOB), 404)
            message_of(await api.http.delete(f"/v1/files/{file_id}", headers=BOB), 404)
        message_of(await api.http.get(f"/v1/batches/{batch['id']}", headers=BOB), 404)
        message_of(await api.http.post(f"/v1/batches/{batch['id']}/cancel", headers=BOB), 404)
        body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        assert "no such file" in message_of(await api.http.post("/v1/batches", json=body, headers=BOB), 400)
        for path in ("/v1/files", "/v1/batches"):
            assert answered(await api.http.get(path, headers=BOB))["data"] == []
            assert len(answered(await api.http.get(path, headers=ANN))["data"]) > 0


async def test_a_batch_continues_after_a_restart_and_no_answer_is_computed_twice(tmp_path: Path) -> None:
    folder, lines = tmp_path / "folder", [a_line(f"{number}", prompt=f"p{number}") for number in range(6)]
    seen: list[str] = []
    async with open_batches(folder, echoes(), max_batch_lines=1) as api:
        batch = await create(api, lines)
        await until(lambda: api.sample("batch_lines_total", result="done") == 2)
        seen += [bytes(request.prompt_token_ids).decode() for request in api.engine.requests[:2]]
    async with open_batches(folder, echoes(), max_batch_lines=3) as api:
        done = await ended(api, batch["id"])
        seen += [bytes(request.prompt_token_ids).decode() for request in api.engine.requests]
        written = await lines_of(api, done["output_file_id"])
    assert [line["custom_id"] for line in written] == [f"{number}" for number in range(6)]
    assert sorted(seen)[:2] == ["p0", "p1"]
    assert seen.count("p0") == seen.count("p1") == 1
    assert done["request_counts"] == {"total": 6, "completed": 6, "failed": 0}


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing"])
async def test_a_batch_continues_from_every_status(tmp_path: Path, status: str) -> None:
    folder = tmp_path / "folder"
    async with open_batches(folder) as api:
        api.engine.released.clear()
        batch = await create(api, [a_line("a"), a_line("b")])
        await until(lambda: api.engine.num_running == 2)
        if status == "finalizing":
            api.engine.released.set()
            await ended(api, batch["id"])
    with sqlite3.connect(folder / "journal.sqlite") as db:
        if status == "validating":
            db.execute("DELETE FROM lines")
        if status == "finalizing":  # as if the last transaction had not been
            db.execute("UPDATE batches SET output_file_id = NULL, completed_at = NULL")
            db.executemany(
                "INSERT INTO lines VALUES (?, ?, ?, 0, 1, 200, 'batch_req_1', 'r', '{}')",
                [(batch["id"], 1, "a"), (batch["id"], 2, "b")],
            )
        db.execute("UPDATE batches SET status = ?", (status,))
    db.close()
    async with open_batches(folder) as api:
        done = await ended(api, batch["id"])
        written = await lines_of(api, done["output_file_id"])
    assert done["status"] == "completed"
    assert [line["custom_id"] for line in written] == ["a", "b"]


async def test_what_a_killed_process_left_in_the_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    async with open_batches(folder) as api:
        file = await upload(api, b"kept")
    for name in (f"file-{'0' * 32}.part", f"file-{'f' * 32}"):
        (folder / "files" / name).write_bytes(b"x")
    async with open_batches(folder) as api:
        assert [path.name for path in (folder / "files").iterdir()] == [file["id"]]
        assert (await api.http.get(f"/v1/files/{file['id']}/content")).content == b"kept"


async def test_a_cancelled_batch_has_the_answers_so_far(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", max_batch_lines=1) as api:
        batch = await create(api, [a_line(f"{number}") for number in range(3)])
        await until(lambda: api.sample("batch_lines_total", result="done") == 1)
        api.engine.released.clear()
        cancelling = answered(await api.http.post(f"/v1/batches/{batch['id']}/cancel"))
        assert cancelling["status"] == "cancelling"
        done = await ended(api, batch["id"])
        assert done["status"] == "cancelled"
        assert done["cancelling_at"] is not None
        assert done["cancelled_at"] is not None
        output, errors = await lines_of(api, done["output_file_id"]), await lines_of(api, done["error_file_id"])
        assert [line["custom_id"] for line in output + errors] == ["0", "1", "2"]
        assert len(output) == done["request_counts"]["completed"]
        assert errors[-1]["response"] is None
        assert errors[-1]["error"]["code"] == "batch_cancelled"
        await until(lambda: api.engine.num_running == 0)
        refusal = await api.http.post(f"/v1/batches/{batch['id']}/cancel")
        assert message_of(refusal, 400) == "The batch cannot be cancelled: its status is cancelled."


async def test_a_batch_cancelled_twice_or_before_its_first_line_ends(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        api.engine.is_ready = False
        batch = await create(api, [a_line()])
        for _ in range(2):
            answer = await api.http.post(f"/v1/batches/{batch['id']}/cancel")
            assert answer.status_code == 200 or "is cancelled" in message_of(answer, 400)
        assert (await ended(api, batch["id"]))["status"] == "cancelled"
        assert not api.engine.requests


async def test_a_batch_expires_after_its_window(tmp_path: Path) -> None:
    clock = Clock()
    async with open_batches(tmp_path / "folder", clock=clock, max_batch_lines=1) as api:
        batch = await create(api, [a_line("a"), a_line("b")])
        await until(lambda: api.sample("batch_lines_total", result="done") == 1)
        api.engine.released.clear()
        assert batch["expires_at"] == batch["created_at"] + WINDOW_SECONDS
        clock.seconds += WINDOW_SECONDS - 1
        await asyncio.sleep(0.05)
        if (await retrieve(api, batch["id"]))["status"] == "completed":
            pytest.skip("both lines ended first")
        clock.seconds += 1
        done = await ended(api, batch["id"])
        assert (done["status"], done["expired_at"]) == ("expired", int(clock.seconds))
        (expired,) = await lines_of(api, done["error_file_id"])
        assert (expired["custom_id"], expired["error"]["code"]) == ("b", "batch_expired")
        assert len(await lines_of(api, done["output_file_id"])) == 1


BAD_LINES: list[tuple[bytes, str, str]] = [
    (b"{", "invalid_json_line", "The line is not JSON"),
    (b"[]", "invalid_json_line", "The line is []; it must be an object."),
    (b'{"custom_id": "a", "custom_id": "b"}', "invalid_json_line", "duplicate key"),
    (json.dumps({"custom_id": "a"}).encode(), "missing_required_parameter", "`method` is missing"),
    (json.dumps(a_line() | {"more": 1}).encode(), "unknown_parameter", 'Unknown field "more".'),
    (json.dumps(a_line("")).encode(), "invalid_custom_id", "`custom_id` is"),
    (json.dumps(a_line(method="GET")).encode(), "invalid_method", '`method` is "GET"; it must be "POST".'),
    (json.dumps(a_line(url=CHAT)).encode(), "invalid_url", "it must be /v1/completions"),
    (json.dumps(a_line() | {"body": []}).encode(), "invalid_body", "`body` is []; it must be an object."),
    (json.dumps(a_line(stream=True)).encode(), "invalid_body", "`stream` is set"),
    (json.dumps(a_line("zero")).encode(), "duplicate_custom_id", 'The custom_id "zero" is that of line 1.'),
    (json.dumps(a_line(prompt="x" * 3000)).encode(), "line_too_long", "more than 2000 bytes"),
]


@pytest.mark.parametrize(("line", "code", "message"), BAD_LINES)
async def test_a_wrong_line_is_reported_with_its_number(tmp_path: Path, line: bytes, code: str, message: str) -> None:
    limits = BatchLimits(max_line_bytes=2000)
    async with open_batches(tmp_path / "folder", limits=limits) as api:
        content = json.dumps(a_line("zero")).encode() + b"\n\n" + line + b"\n"
        done = await ended(api, (await create(api, content))["id"])
        assert done["status"] == "failed"
        assert done["failed_at"] is not None
        (error,) = done["errors"]["data"]
        assert (error["line"], error["code"]) == (3, code)
        assert message in error["message"]
        assert not api.engine.requests


async def test_the_number_of_lines_and_of_reported_errors_is_limited(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", limits=BatchLimits(max_lines=2)) as api:
        done = await ended(api, (await create(api, [a_line(f"{n}") for n in range(4)]))["id"])
        (error,) = done["errors"]["data"]
        assert (error["line"], error["code"]) == (3, "too_many_lines")
        done = await ended(api, (await create(api, b"{\n" * 1000))["id"])
        assert len(done["errors"]["data"]) == MAX_ERRORS
        done = await ended(api, (await create(api, b"\n\n"))["id"])
        assert done["errors"]["data"][0]["code"] == "empty_file"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"completion_window": "48h"}, "`completion_window` is \"48h\"; it must be '24h'."),
        ({"endpoint": "/v1/images"}, '`endpoint` is "/v1/images"'),
        ({"input_file_id": "file-x"}, '`input_file_id` is "file-x"; there is no such file.'),
        ({"metadata": {f"{n}": "" for n in range(17)}}, "`metadata` has 17 entries; the limit is 16."),
        ({"metadata": {"a": "x" * 513}}, "names can have 64 characters"),
        ({"output_expires_after": {}}, "Unknown field `output_expires_after`."),
    ],
)
async def test_a_wrong_field_of_a_batch_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    async with open_batches(tmp_path / "folder") as api:
        file = await upload(api, b"{}")
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"} | fields
        assert message in message_of(await api.http.post("/v1/batches", json=body), 400)


async def test_a_file_of_answers_is_no_input(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        done = await ended(api, (await create(api, [a_line()], metadata={"for": "test"}))["id"])
        assert done["metadata"] == {"for": "test"}
        body = {"input_file_id": done["output_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        assert "purpose `batch`" in message_of(await api.http.post("/v1/batches", json=body), 400)


async def test_batches_are_listed_in_pages(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        ids = [(await create(api, [a_line()]))["id"] for _ in range(5)]
        newest = answered(await api.http.get("/v1/batches", params={"limit": 2}))
        assert [batch["id"] for batch in newest["data"]] == [ids[4], ids[3]]
        assert (newest["first_id"], newest["last_id"], newest["has_more"]) == (ids[4], ids[3], True)
        rest = answered(await api.http.get("/v1/batches", params={"after": ids[3]}))
        assert [batch["id"] for batch in rest["data"]] == [ids[2], ids[1], ids[0]]
        assert rest["has_more"] is False
        bad: list[tuple[dict[str, Any], str]] = [
            ({"limit": "101"}, '`limit` is "101"; it must be an integer from 1 to 100.'),
            ({"limit": "x"}, "must be an integer"),
            ({"after": "batch_x"}, '`after` is "batch_x"; there is no such id in the list.'),
            ({"order": "up"}, "it must be asc or desc"),
            ({"purpose": "batch"}, 'Unknown parameter "purpose"'),
            ({"limit": ["1", "2"]}, "several times"),
        ]
        for params, message in bad:
            assert message in message_of(await api.http.get("/v1/batches", params=params), 400)


async def test_a_line_that_a_limit_rejects_runs_again_until_it_is_answered(tmp_path: Path) -> None:
    limits = QueueLimits(max_requests=0)
    async with open_batches(tmp_path / "folder", queue_limits=limits, max_batch_lines=4) as api:
        api.engine.config = api.engine.config  # the batch has 64 places
        done = await ended(api, (await create(api, [a_line(f"{n}", n=60) for n in range(4)]))["id"])
        assert done["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
        assert api.sample("admission_rejections_total", reason="queue_full") > 0


async def test_lines_wait_for_an_engine_that_is_not_ready(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        api.engine.is_ready = False
        batch = await create(api, [a_line()])
        await asyncio.sleep(0.2)
        assert not api.engine.requests
        api.engine.is_ready = True
        assert (await ended(api, batch["id"]))["request_counts"]["completed"] == 1


async def test_a_line_that_ends_three_engines_fails(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        api.engine.dies_after = 1
        done = await ended(api, (await create(api, [a_line()]))["id"])
        assert len(api.engine.requests) == 3
        (line,) = await lines_of(api, done["error_file_id"])
        assert line["response"]["status_code"] == 503


async def test_lines_for_a_model_that_can_never_be_loaded_end_with_that_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ModelLoadFailed("The model fake cannot be loaded.", is_permanent=True)
    num_tries = 0

    def broken(*_: object, **__: object) -> OutputQueue:
        nonlocal num_tries
        num_tries += 1
        raise error

    monkeypatch.setattr(FakeEngineClient, "submit", broken)
    async with open_batches(tmp_path / "folder") as api:
        done = await ended(api, (await create(api, [a_line("1"), a_line("2")]))["id"])
        assert (done["status"], done["request_counts"]) == ("completed", {"total": 2, "completed": 0, "failed": 2})
        for line in await lines_of(api, done["error_file_id"]):
            assert line["response"]["status_code"] == 503
            assert line["response"]["body"]["error"]["message"] == "The model fake cannot be loaded."
    assert num_tries == 2


@pytest.mark.parametrize("error", [EngineUnavailable(), ModelLoadFailed("The model fake cannot be loaded.")])
async def test_a_line_without_an_engine_runs_again_until_there_is_one_and_leaves_its_slot_to_other_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(line_runs, "MAX_PAUSE_SECONDS", 0.02)
    submit = FakeEngineClient.submit
    num_failures, is_broken = 0, True

    def broken(engine: FakeEngineClient, request: Request, crash_group: int = 0) -> OutputQueue:
        nonlocal num_failures
        if is_broken and request.key == "ann":
            num_failures += 1
            raise error
        return submit(engine, request, crash_group)

    monkeypatch.setattr(FakeEngineClient, "submit", broken)
    async with open_batches(tmp_path / "folder", keys=KEYS, max_batch_lines=1) as api:
        of_ann = await create(api, [a_line("1"), a_line("2")], headers=ANN)
        await until(lambda: num_failures > 5)
        of_bob = await ended(api, (await create(api, [a_line()], headers=BOB))["id"], BOB)
        assert of_bob["request_counts"]["completed"] == 1
        assert (await retrieve(api, of_ann["id"], ANN))["request_counts"]["failed"] == 0
        is_broken = False
        assert (await ended(api, of_ann["id"], ANN))["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


async def test_a_failure_of_the_engine_is_the_answer_500(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        api.engine.fails_after = 1
        done = await ended(api, (await create(api, [a_line()]))["id"])
        (line,) = await lines_of(api, done["error_file_id"])
        assert line["response"]["body"]["error"]["code"] == "internal_error"


async def test_a_full_disk_delays_answers_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([sqlite3.OperationalError("database or disk is full")] * 3)
    answer = BatchStore.answer

    async def failing(store: BatchStore, batch_id: str, number: int, one: LineAnswer) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        await answer(store, batch_id, number, one)

    monkeypatch.setattr(BatchStore, "answer", failing)
    async with open_batches(tmp_path / "folder") as api:
        done = await ended(api, (await create(api, [a_line()]))["id"])
        assert done["request_counts"]["completed"] == 1
        assert len(api.engine.requests) == 1


@pytest.mark.parametrize("failing", ["begin", "finalize", "end"])
async def test_a_step_of_a_batch_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    failures = iter([OSError(28, "No space left on device")])
    works: Callable[..., Any] = getattr(BatchStore, failing)

    async def fails_once(*args: Any, **kwargs: Any) -> Any:
        if (error := next(failures, None)) is not None:
            raise error
        return await works(*args, **kwargs)

    monkeypatch.setattr(BatchStore, failing, fails_once)
    folder = tmp_path / "folder"
    async with open_batches(folder) as api:
        done = await ended(api, (await create(api, [a_line()]))["id"])
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 1)
        assert len(api.engine.requests) == 1
        assert {path.name for path in (folder / "files").iterdir()} == {
            done["input_file_id"],
            done["output_file_id"],
        }


async def test_the_input_of_a_running_batch_stays(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        api.engine.released.clear()
        batch = await create(api, [a_line()])
        path = f"/v1/files/{batch['input_file_id']}"
        assert f"The batch {batch['id']} needs this file." in message_of(await api.http.delete(path), 400)
        api.engine.released.set()
        await ended(api, batch["id"])
        assert answered(await api.http.delete(path)) == {
            "id": batch["input_file_id"],
            "object": "file",
            "deleted": True,
        }


async def test_an_explanation_of_a_line_is_found_by_the_id_of_its_answer(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", says("Hello!")) as api:
        done = await ended(api, (await create(api, [a_line()]))["id"])
        (line,) = await lines_of(api, done["output_file_id"])
        explained = answered(await api.http.get(f"/v1/requests/{line['response']['body']['id']}/explain"))
        assert explained["request_id"] == line["response"]["request_id"]


def test_a_batch_cannot_start_before_it_is_connected(tmp_path: Path) -> None:
    batches = Batches(tmp_path / "folder", BatchLimits())
    with pytest.raises(AssertionError, match="connect comes first"):
        asyncio.run(batches.start())
    asyncio.run(batches.close())
