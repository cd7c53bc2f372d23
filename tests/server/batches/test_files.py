"""Files through the application: forms, limits, pages, and the folder."""

import asyncio
import errno
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caravan.server.batches import upload as upload_module
from caravan.server.batches.file_store import PartFile
from caravan.server.batches.folder import BatchFolder, FolderError
from caravan.server.batches.form_data import FormDecoder, PartData, PartHead, WrongForm
from caravan.server.batches.journal import Journal
from caravan.server.batches.settings import BatchLimits
from caravan.server.batches.upload import MAX_FILENAME
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.api_keys import ApiKeys
from tests.server.batches.open_batches import message_of, open_batches, upload
from tests.server.openai.api import Api, answered, open_api

PART = '--B\r\ncontent-disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
FILE = PART.format("file", '; filename="in.jsonl"', "hello")
PURPOSE = PART.format("purpose", "", "batch")
END = "--B--\r\n"


async def send(
    api: Api, body: str | AsyncIterator[bytes], kind: str = "multipart/form-data; boundary=B"
) -> httpx.Response:
    content = body.encode() if isinstance(body, str) else body
    return await api.http.post("/v1/files", content=content, headers={"content-type": kind})


@pytest.mark.parametrize("form", [FILE + PURPOSE + END, PURPOSE + FILE + END, f"{PURPOSE}{FILE}{END}after"])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_form_may_come_in_any_order_and_in_pieces_of_any_size(tmp_path: Path, form: str, size: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(form), size):
            yield form[start : start + size].encode()

    async with open_batches(tmp_path / "folder") as api:
        file = answered(await send(api, pieces()))
        assert (file["bytes"], file["filename"]) == (5, "in.jsonl")
        assert (file["purpose"], file["status"]) == ("batch", "processed")
        assert answered(await api.http.get(f"/v1/files/{file['id']}")) == file
        assert (await api.http.get(f"/v1/files/{file['id']}/content")).content == b"hello"


@pytest.mark.parametrize("size", [0, 1, 70_000, 5 * 2**20])
async def test_a_file_of_any_bytes_is_kept_as_it_is(tmp_path: Path, size: int) -> None:
    content = (b"\r\n--B\r\n--" + os.urandom(1000) + b"\r\n")[:size] * max(1, size // 1000)
    async with open_batches(tmp_path / "folder") as api:
        file = await upload(api, content)
        assert file["bytes"] == len(content)
        assert (await api.http.get(f"/v1/files/{file['id']}/content")).content == content


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (PURPOSE + END, "`file` is missing; it is required."),
        (FILE + END, "`purpose` is missing; it is required."),
        (FILE + PART.format("purpose", "", "fine-tune") + END, '`purpose` is "fine-tune"; this server only takes'),
        (FILE + FILE + PURPOSE + END, "The form must have one file, in the field `file`."),
        (PART.format("data", '; filename="x"', "") + END, "The form must have one file"),
        (PART.format("file", "", "hello") + PURPOSE + END, "`file` must be a file: its part needs a filename."),
        (PURPOSE + PURPOSE + FILE + END, "The form has the field `purpose` twice."),
        (PART.format("expires_after[anchor]", "", "x") + END, 'Unknown field "expires_after[anchor]" in the form'),
        (PART.format("purpose", "", "x" * 2000) + END, "`purpose` must have at most 1024 bytes."),
        (PART.format("file", f'; filename="{"x" * (MAX_FILENAME + 1)}"', "") + PURPOSE + END, "The name of the file"),
        (FILE + PURPOSE, "The body is not a complete form"),
        (END, "`file` is missing"),
        ("nothing", "The body is not a complete form"),
        ("x" * (2**20 + 1), "The body is not a complete form"),
        ("--Bx\r\n" + END, "The body is not a complete form"),
        ("--B\r\nno header\r\n\r\nx\r\n" + END, "The body is not a complete form"),
        ("--B\r\n" + "x" * 9000, "The body is not a complete form"),
        (f"--B\r\na: {'x' * 9000}\r\n\r\nx\r\n" + END, "The body is not a complete form"),
        ("--B" + " " * 9000, "The body is not a complete form"),
        (PART.format("file", '; filename="x"\r\ncontent-transfer-encoding: base64', "") + END, "not a complete form"),
        ("--B\r\ncontent-type: text/plain\r\n\r\nx\r\n" + END, "The body is not a complete form"),
        (PART.format("purpose", "", "") * 17 + END, "a complete form of at most 16 parts"),
    ],
)
async def test_a_wrong_form_is_refused_and_leaves_nothing(tmp_path: Path, form: str, message: str) -> None:
    async with open_batches(tmp_path / "folder") as api:
        assert message in message_of(await send(api, form), 400)
        assert list((tmp_path / "folder" / "files").iterdir()) == []
        assert answered(await api.http.get("/v1/files"))["data"] == []


def test_a_form_has_at_most_16_parts() -> None:
    decoder = FormDecoder(b"B")
    assert len(decoder.feed(PURPOSE.encode() * 16)) == 32
    with pytest.raises(WrongForm):
        decoder.feed(PURPOSE.encode())


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 200), max_size=8))
@example(data=b"\r\n--", cuts=[*range(200)])
@example(data=b"\r", cuts=[*range(200)])
def test_a_form_cut_anywhere_has_the_same_data(data: bytes, cuts: list[int]) -> None:
    boundary = b"B" if b"--B" not in data else b"another"
    head = b'\r\ncontent-disposition: form-data; name="file"; filename="in \xc3\xa4.jsonl"\r\n\r\n'
    form = b"--" + boundary + head + data + b"\r\n--" + boundary + b"--\r\n"
    places = [0, *sorted({min(cut, len(form)) for cut in cuts}), len(form)]
    decoder = FormDecoder(boundary)
    events = [event for start, end in pairwise(places) for event in decoder.feed(form[start:end])]
    assert events[0] == PartHead("file", "in ä.jsonl")
    assert b"".join(event.data for event in events[1:] if isinstance(event, PartData)) == data
    assert decoder.is_complete


async def test_only_forms_are_uploaded(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        assert "multipart/form-data" in message_of(await send(api, "{}", "application/json"), 415)
        assert "no boundary" in message_of(await send(api, "", "multipart/form-data"), 400)
        headers = {"content-type": "multipart/form-data; boundary=B", "content-encoding": "gzip"}
        assert "content encoding" in message_of(await api.http.post("/v1/files", content=b"", headers=headers), 415)


async def test_a_file_has_at_most_as_many_bytes_as_the_limit(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder", limits=BatchLimits(max_file_bytes=1000)) as api:
        await upload(api, b"x" * 1000)
        for content in (b"x" * 1001, b"x" * 3_000_000):
            sent = await api.http.post("/v1/files", files={"file": ("a", content)}, data={"purpose": "batch"})
            assert message_of(sent, 413) == "The file exceeds the limit of 1000 bytes (--batch-file-size)."
        assert len(list((tmp_path / "folder" / "files").iterdir())) == 1


async def test_all_files_together_have_a_limit_that_keys_share(tmp_path: Path) -> None:
    keys = ApiKeys({"ann": "key-of-ann", "bob": "key-of-bob"})
    ann, bob = {"authorization": "Bearer key-of-ann"}, {"authorization": "Bearer key-of-bob"}
    async with open_batches(tmp_path / "folder", limits=BatchLimits(max_folder_bytes=1000), keys=keys) as api:
        file = await upload(api, b"x" * 1000, ann)
        form: dict[str, Any] = {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch"}}
        assert "--batch-folder-size" in message_of(await api.http.post("/v1/files", headers=ann, **form), 413)
        await upload(api, b"x" * 500, bob)
        await api.http.delete(f"/v1/files/{file['id']}", headers=ann)
        await upload(api, b"x" * 500, ann)
    async with open_batches(tmp_path / "folder", limits=BatchLimits(max_folder_bytes=1000), keys=keys) as api:
        assert "--batch-folder-size" in message_of(await api.http.post("/v1/files", headers=ann, **form), 413)


async def test_an_upload_that_stops_is_refused(tmp_path: Path) -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield FILE.encode()
        await asyncio.sleep(60)

    limits = RequestLimits(body_timeout_seconds=0.05)
    async with open_batches(tmp_path / "folder", request_limits=limits) as api:
        assert "No part of the body arrived within 0.05 seconds." in message_of(await send(api, stalls()), 408)
        assert list((tmp_path / "folder" / "files").iterdir()) == []


async def test_an_upload_has_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def trickles() -> AsyncIterator[bytes]:
        yield FILE.encode()
        while True:
            await asyncio.sleep(0.01)
            yield b"x"

    monkeypatch.setattr(upload_module, "MAX_UPLOAD_SECONDS", 0.1)
    async with open_batches(tmp_path / "folder") as api:
        assert "did not arrive within 0.1 seconds" in message_of(await send(api, trickles()), 408)


async def test_files_are_listed_in_pages_and_by_purpose(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        ids = [(await upload(api, b"x"))["id"] for _ in range(3)]
        newest = answered(await api.http.get("/v1/files"))
        assert [file["id"] for file in newest["data"]] == ids[::-1]
        oldest = answered(await api.http.get("/v1/files", params={"order": "asc", "limit": 1}))
        assert ([file["id"] for file in oldest["data"]], oldest["has_more"]) == (ids[:1], True)
        rest = answered(await api.http.get("/v1/files", params={"order": "asc", "after": ids[0]}))
        assert [file["id"] for file in rest["data"]] == ids[1:]
        for purpose, num in (("batch", 3), ("batch_output", 0)):
            listed = answered(await api.http.get("/v1/files", params={"purpose": purpose}))
            assert len(listed["data"]) == num


async def test_a_deleted_file_does_not_exist(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        file = await upload(api, b"x")
        assert answered(await api.http.delete(f"/v1/files/{file['id']}"))["deleted"] is True
        message_of(await api.http.get(f"/v1/files/{file['id']}"), 404)
        message_of(await api.http.delete(f"/v1/files/{file['id']}"), 404)
        assert list((tmp_path / "folder" / "files").iterdir()) == []


@pytest.mark.parametrize(
    "path", ["/v1/files", "/v1/batches", "/v1/files/file-1", "/v1/files/file-1/content", "/v1/batches/b"]
)
async def test_without_a_folder_the_endpoints_name_the_option(path: str) -> None:
    async with open_api() as api:
        assert "--batch-folder PATH" in message_of(await api.http.get(path), 404)


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (errno.ENOSPC, 507, "The disk of the batch folder is full."),
        (errno.EROFS, 500, "The batch folder cannot be used."),
    ],
)
async def test_an_error_of_the_disk_is_a_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int, message: str
) -> None:
    def fails(file: PartFile) -> None:
        raise OSError(number, os.strerror(number))

    async with open_batches(tmp_path / "folder") as api:
        monkeypatch.setattr(PartFile, "complete", fails)
        form: dict[str, Any] = {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch"}}
        assert message in message_of(await api.http.post("/v1/files", **form), status)
        assert list((tmp_path / "folder" / "files").iterdir()) == []


async def test_a_journal_that_cannot_be_written_is_a_response(tmp_path: Path) -> None:
    async with open_batches(tmp_path / "folder") as api:
        other = sqlite3.connect(tmp_path / "folder" / "journal.sqlite", isolation_level=None)
        other.execute("DROP TABLE files")
        other.close()
        form: dict[str, Any] = {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch"}}
        message_of(await api.http.post("/v1/files", **form), 500)
        assert list((tmp_path / "folder" / "files").iterdir()) == []


def test_threat_35_only_the_owner_can_read_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    with closing(BatchFolder(path)) as folder:
        Journal(folder.journal).close()
        for one in (path, *path.rglob("*")):
            mode = stat.S_IMODE(one.stat().st_mode)
            assert mode == (0o700 if one.is_dir() else 0o600), one
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(FolderError, match="Set its mode to 0700"):
        BatchFolder(tmp_path / "open")


async def test_a_file_that_is_not_a_servers_stays_in_the_folder(tmp_path: Path) -> None:
    names = {"thesis.tex", "file-1", f"file-{'a' * 32}.tex", f"my-file-{'a' * 32}"}
    files = tmp_path / "folder" / "files"
    files.mkdir(parents=True)
    (tmp_path / "folder").chmod(0o700)
    for name in names:
        (files / name).write_bytes(b"x")
    async with open_batches(tmp_path / "folder"):
        assert {path.name for path in files.iterdir()} == names


def test_threat_35_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BatchFolder(tmp_path / "folder").close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(FolderError, match=f"Another user owns the batch folder {tmp_path}/folder"):
        BatchFolder(tmp_path / "folder")


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    message = "Another process uses the batch folder"
    with closing(BatchFolder(tmp_path / "folder")), pytest.raises(FolderError, match=message):
        BatchFolder(tmp_path / "folder")
    BatchFolder(tmp_path / "folder").close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=f"Cannot use the batch folder {tmp_path}/file"):
        BatchFolder(tmp_path / "file")

    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(FolderError, match="Read-only file system"):
        BatchFolder(tmp_path / "folder")


def test_a_journal_of_another_version_or_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(FolderError, match="Cannot open the journal"):
        Journal(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(FolderError, match="has version 9; this server reads version 2"):
        Journal(path)


def test_what_fails_in_a_transaction_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")

    def fails(db: Any) -> None:
        db.execute("DELETE FROM files")
        db.execute("INSERT INTO batches (id) VALUES ('x')")

    with pytest.raises(Exception, match="NOT NULL"):
        journal.run_now(fails)
    assert journal.run_now(lambda db: db.execute("SELECT count(*) FROM batches").fetchone()[0]) == 0
    assert journal.run_now(lambda db: db.execute("PRAGMA synchronous").fetchone()[0]) == 2  # FULL
    journal.close()
