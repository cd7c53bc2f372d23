"""The spill file: what is read is what was written, whatever happens to the file, or it is not found."""

import errno
import hashlib
import os
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caravan.model.spill_file import Found, SpillFile, UnusableSpill
from caravan.model.spill_files import remove_unneeded, spill_file_name, spill_files
from caravan.model.spill_header import SpillKey
from caravan.model.spill_index import SpillIndex
from tests.support.spill_engines import KEY, other_key

BLOCK_BYTES = 1000
SIZE = 65_536  # twelve slots
STEPS = st.tuples(st.sampled_from(["write", "touch", "drop", "reopen"]), st.integers(0, 20))


def open_file(
    path: Path, *, key: SpillKey = KEY, size: int = SIZE, model_path: str = "/model", is_in_cache: bool = True
) -> SpillFile:
    return SpillFile(path, key, model_path, BLOCK_BYTES, size, is_in_cache=is_in_cache)


def name(number: int) -> bytes:
    return (number + 1).to_bytes(32, "big")


def block(number: int) -> bytes:
    return bytes((number + 7 * index) % 251 for index in range(BLOCK_BYTES))


def write(file: SpillFile, *numbers: int) -> None:
    for number in numbers:
        file.write(name(number), memoryview(block(number)))


def read(file: SpillFile, number: int) -> bytes | Found:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    found = file.read(name(number), buffer)
    return bytes(buffer) if found is Found.YES else found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.blocks"


def test_blocks_outlive_the_one_who_wrote_them(path: Path) -> None:
    with closing(open_file(path)) as file:
        assert file.emptied == "it is new"
        write(file, 1, 2, 3)
    with closing(open_file(path)) as file:
        assert (file.emptied, len(file.index)) == ("", 3)
        assert [read(file, number) for number in (1, 2, 3, 4)] == [block(1), block(2), block(3), Found.NO]
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == file.num_bytes <= SIZE
    assert status.st_blocks * 512 >= status.st_size, "its space on the disk is reserved"


def test_the_least_recently_used_block_makes_room(path: Path) -> None:
    with closing(open_file(path)) as file:
        num_slots = file.header.num_slots
        write(file, *range(1, num_slots + 1))
        file.touch([name(1), name(99)])
        write(file, 100)
        assert read(file, 2) is Found.NO
        assert read(file, 1) == block(1)
        assert len(file.index) == num_slots
    with closing(open_file(path)) as file:  # the order is in the file
        write(file, 101, 102)
        assert [number for number in (1, 3, 4, 5, 100, 101, 102) if name(number) in file.index] == [1, 5, 100, 101, 102]
    assert path.stat().st_size <= SIZE


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"key": other_key(kv_dtype="int8")}, "kv_dtype"),
        (
            {"key": other_key(max_model_len=128, share="1/2")},
            "max_model_len, share",
        ),
        (
            {"key": other_key(weights=msgspec.structs.replace(KEY.weights, quantization="int4", code="x"))},
            "quantization, code",
        ),
        ({"size": 2 * SIZE}, ""),
    ],
)
def test_a_file_of_another_model_or_setting_is_emptied(path: Path, changed: dict[str, Any], names: str) -> None:
    with closing(open_file(path)) as file:
        write(file, 1, 2)
    with closing(open_file(path, **changed)) as file:
        assert file.emptied == (f"its blocks were computed with other {names}" if names else "it has another size")
        assert (len(file.index), read(file, 1)) == (0, Found.NO)
        write(file, 1)
        assert read(file, 1) == block(1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), is_open=st.booleans())
def test_threat_34_no_damage_makes_a_block_another_one(tmp_path: Path, data: st.DataObject, is_open: bool) -> None:
    path = tmp_path / "damaged.blocks"
    path.unlink(missing_ok=True)
    file = open_file(path)
    write(file, *range(6))
    if not is_open:
        file.close()
    contents = bytearray(path.read_bytes())
    index_offset = file.num_bytes - file.header.num_slots * 4096 - 4096
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(
            st.one_of(
                st.integers(0, 600),  # the header
                st.integers(index_offset - 4096, index_offset - 4089),  # the counter
                st.integers(index_offset, index_offset + 6 * 72),  # the index
                st.integers(index_offset + 4096, len(contents) - 1),  # slots
            )
        )
        contents[place] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):  # a slot with the bytes of another, and an entry that is another one's
        first, second = index_offset + 4096, index_offset + 8192
        contents[first : first + 1000], contents[second : second + 1000] = (
            contents[second : second + 1000],
            contents[first : first + 1000],
        )
        contents[index_offset : index_offset + 32] = name(data.draw(st.integers(0, 6)))
    path.write_bytes(contents[: data.draw(st.one_of(st.just(len(contents)), st.integers(0, len(contents))))])
    if not is_open:
        file = open_file(path)
    with closing(file):
        for number in range(7):
            assert read(file, number) in (block(number), Found.NO, Found.DAMAGED)
        write(file, 1, 7)
        assert (read(file, 1), read(file, 7)) == (block(1), block(7))


def test_a_damaged_block_is_found_once_and_then_not_in_the_file(path: Path) -> None:
    with closing(open_file(path)) as file:
        write(file, 1)
        contents = bytearray(path.read_bytes())
        contents[contents.index(block(1)) + 500] ^= 1
        path.write_bytes(contents)
        assert [read(file, 1), read(file, 1)] == [Found.DAMAGED, Found.NO]


def test_a_writer_that_ends_at_any_moment_leaves_no_wrong_block(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    with closing(open_file(path)) as file:
        write(file, *range(1, file.header.num_slots + 1))
    for moment in range(8):
        with closing(open_file(path)) as file, monkeypatch.context() as patch:
            calls = iter(range(100))

            def write_some(descriptor: int, data: bytes, offset: int, moment: int = moment, calls: Any = calls) -> int:
                if next(calls) < moment:
                    return pwrite(descriptor, data, offset)
                pwrite(descriptor, data[: len(data) // 2], offset)
                raise KeyboardInterrupt

            patch.setattr(os, "pwrite", write_some)
            with pytest.raises(KeyboardInterrupt):
                write(file, 200 + moment, 300 + moment)
        with closing(open_file(path)) as file:
            for number in (*range(1, 40), *range(200, 208), *range(300, 308)):
                assert read(file, number) in (block(number), Found.NO, Found.DAMAGED)
            write(file, *range(1, file.header.num_slots + 1))


@pytest.mark.parametrize("text", ["link", "mode", "folder", "owner", "kind", "zeros", "small"])
def test_threat_34_a_path_that_is_no_private_file_of_this_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "kv.blocks"
    size = SIZE
    reason = ""
    match text:
        case "link":
            (tmp_path / "target").touch(0o600)
            path.symlink_to(tmp_path / "target")
            reason = "Too many levels of symbolic links"
        case "mode":
            path.touch()
            path.chmod(0o644)
            reason = r"other users can access it \(mode 644\)"
        case "folder":
            path.mkdir()
            reason = "Is a directory"
        case "owner":
            uid = os.getuid()
            monkeypatch.setattr(os, "getuid", lambda: uid + 1)
            reason = f"it belongs to the user {uid}"
        case "kind" | "zeros":
            path.touch(0o600)
            path.write_bytes(bytes(16 if text == "zeros" else 0) + b"a text of somebody")
            reason = "it is a file of another kind"
        case "small":
            size = 8000
            reason = "8,000 bytes have no room for a block of 1,000 bytes"
    with pytest.raises((OSError, UnusableSpill), match=reason):
        open_file(path, size=size, is_in_cache=False)
    if text in ("kind", "zeros"):
        assert path.read_bytes().endswith(b"a text of somebody")


def test_a_file_whose_creation_was_interrupted_is_created_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in ("posix_fallocate", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, stop)
            with pytest.raises(KeyboardInterrupt):
                open_file(path, is_in_cache=False)
    with closing(open_file(path, is_in_cache=False)) as file:
        write(file, 1)
        assert read(file, 1) == block(1)


def test_a_special_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kv", 0o600)
    with pytest.raises(UnusableSpill, match="it is not a regular file"):
        open_file(tmp_path / "kv")


def test_a_disk_that_is_too_small_is_an_error_and_no_file_keeps_its_space(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(descriptor: int, offset: int, num_bytes: int) -> None:
        os.ftruncate(descriptor, num_bytes // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    with pytest.raises(OSError, match="No space left on device"):
        open_file(path)
    assert path.stat().st_size == 0


def test_a_second_one_reads_what_the_first_writes_and_takes_over_when_it_ends(path: Path) -> None:
    first = open_file(path)
    write(first, 1)
    with closing(open_file(path)) as second:
        assert (first.is_writer, second.is_writer) == (True, False)
        assert read(second, 1) == block(1)
        write(first, 2)
        assert read(second, 2) is Found.NO
        second.refresh()
        assert read(second, 2) == block(2)
        second.touch([name(1)])  # a reader writes nothing
        first.drop(name(2))
        assert read(second, 2) is Found.NO
        second.drop(name(1))
        assert (read(second, 1), read(first, 1)) == (Found.NO, block(1))
        write(first, 3)
        first.refresh()
        first.close()
        second.refresh()
        assert second.is_writer
        assert (read(second, 1), read(second, 3)) == (block(1), block(3))
        write(second, 4)
        second.refresh()
        assert read(second, 4) == block(4)


def test_one_who_reads_a_removed_file_does_not_become_its_writer(path: Path) -> None:
    first = open_file(path)
    with closing(open_file(path)) as second:
        path.unlink()
        second.refresh()
        first.close()
        with pytest.raises(UnusableSpill, match="it was removed"):
            second.refresh()
        assert not second.is_writer


def test_threat_34_a_slot_that_the_writer_uses_again_is_not_found_by_a_reader(path: Path) -> None:
    with closing(open_file(path)) as first:
        write(first, 1)
        with closing(open_file(path)) as second:
            write(first, *range(2, first.header.num_slots + 2))
            assert read(second, 1) is Found.NO
            assert read(second, 1) is Found.NO


def test_one_who_opens_a_file_while_it_is_created_finds_its_blocks_later(path: Path) -> None:
    first = open_file(path)
    header = path.read_bytes()[:4096]
    with path.open("r+b") as file:
        file.write(bytes(4096))
    with closing(open_file(path)) as second:
        write(first, 1)
        with path.open("r+b") as file:
            file.write(header)
        second.refresh()
        assert read(second, 1) == block(1)
    first.close()


def test_a_file_that_an_engine_of_another_model_uses_is_refused(path: Path) -> None:
    with (
        closing(open_file(path)),
        pytest.raises(UnusableSpill, match="another engine uses it, and its blocks were computed with other backend"),
    ):
        open_file(path, key=other_key(backend="other"))


def test_a_file_that_is_removed_while_it_is_opened_is_created_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lstat = Path.lstat
    removals = iter([True, True, False])

    def remove(self: Path) -> os.stat_result:
        if next(removals):
            self.unlink()
        return lstat(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", remove)
        file = open_file(path)
    with closing(file):
        assert path.stat().st_size == file.num_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", lambda self: self.unlink() or lstat(self))
        with pytest.raises(UnusableSpill, match="remove it again and again"):
            open_file(path)


def test_a_disk_that_cannot_read_or_write_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with closing(open_file(path)) as file:
        write(file, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", fail)
            assert read(file, 1) is Found.DAMAGED
        assert read(file, 1) is Found.NO
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda *_: 10)
            with pytest.raises(OSError, match="only 10 of 72 bytes were written"):
                write(file, 2)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=60))
def test_a_file_is_a_bounded_table_of_the_blocks_used_last(tmp_path: Path, steps: list[tuple[str, int]]) -> None:
    path = tmp_path / "model.blocks"
    path.unlink(missing_ok=True)
    file = open_file(path, size=45_000)
    oracle: list[int] = []  # the least recently used first
    for step, number in steps:
        match step:
            case "write" if number not in oracle:
                write(file, number)
                oracle = [*oracle, number][-file.header.num_slots :]
            case "touch" if number in oracle:
                file.touch([name(number)])
                oracle = [*(other for other in oracle if other != number), number]
            case "drop":
                file.drop(name(number))
                oracle = [other for other in oracle if other != number]
            case "reopen":
                file.close()
                file = open_file(path, size=45_000)
        assert [number for number in range(21) if name(number) in file.index] == sorted(oracle)
    with closing(file):
        assert [read(file, number) for number in oracle] == [block(number) for number in oracle]


def test_an_index_with_a_time_that_is_damaged_keeps_its_other_blocks() -> None:
    index = SpillIndex(3)
    entries = [name(1) + bytes(32) + (2**64 - 1).to_bytes(8, "little"), name(2) + bytes(32) + bytes([5, *bytes(7)])]
    index.update(b"".join(entries))
    assert (name(1) in index, name(2) in index, index.time) == (True, True, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").touch()
    return tmp_path


def test_files_of_the_cache_that_nobody_needs_are_removed(folder: Path) -> None:
    model = str(folder / "model.gguf")

    def add(text: str, model_path: str) -> tuple[Path, SpillFile]:
        path = folder / f"{text}.blocks"
        return path, open_file(path, key=other_key(backend=text), model_path=model_path)

    kept, own = add("own", model)
    closed = [add("former options", model), add("no model", str(folder / "gone.gguf"))]
    broken = folder / "broken.blocks"
    broken.write_bytes(b"no header")
    used, file = add("in use", model)
    (folder / "other.gguf").touch()
    other, other_file = add("other model", str(folder / "other.gguf"))
    link = folder / "link.blocks"
    link.symlink_to(other)
    for _, one in [*closed, (other, other_file), (kept, own)]:
        one.close()
    assert len(spill_files(folder)) == 6
    remove_unneeded(folder, model, kept)
    file.close()
    assert {path.path for path in spill_files(folder)} == {kept, used, other}
    assert link.is_symlink()


def test_each_key_has_a_file_of_its_own_in_the_cache() -> None:
    names = {spill_file_name(key) for key in (KEY, other_key(backend="x"), other_key(block_size=8))}
    assert len(names) == 3


def test_a_header_of_another_version_empties_the_file(path: Path) -> None:
    with closing(open_file(path)) as file:
        write(file, 1)
    contents = path.read_bytes()
    start, end = contents.index(b"{"), contents.rindex(b"}") + 1
    text = contents[start:end].replace(b'"num_slots"', b'"num_spots"')
    path.write_bytes(contents[:24] + hashlib.sha256(text).digest() + text + contents[end:])
    with closing(open_file(path)) as file:
        assert (file.emptied, len(file.index)) == ("it has no valid header", 0)
