"""The bounded pass over a GGUF file: it reads what writers write and believes nothing."""

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.gguf_header import read_gguf_header
from tests.support.gguf_files import write_tiny_llama

STRING, ARRAY, UINT8, UINT32 = 8, 9, 0, 4


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(string: str) -> bytes:
    return u64(len(string.encode())) + string.encode()


def gguf(*fields: bytes, tensors: bytes = b"", num_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + u32(version) + u64(num_tensors) + u64(len(fields)) + b"".join(fields) + tensors


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_llama(path)
    return path


def test_fields_and_tensors_are_read_as_they_were_written(tiny_file: Path) -> None:
    header = read_gguf_header(tiny_file)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    types = header.metadata["tokenizer.ggml.token_type"]
    assert isinstance(types, list)
    assert types[:4] == [3, 3, 3, 1]
    assert header.tensors["blk.1.attn_k.weight"].shape == (32, 64)
    assert all(tensor.start % 32 == 0 for tensor in header.tensors.values())


def test_every_value_type_is_read(tmp_path: Path) -> None:
    values = [(0, "B", 200), (1, "b", -3), (2, "H", 60000), (3, "h", -5), (4, "I", 7), (5, "i", -7), (6, "f", 0.5)]
    values += [(7, "B", 1), (10, "Q", 2**63), (11, "q", -(2**62)), (12, "d", 0.1)]
    fields = [text(f"k{kind}") + u32(kind) + struct.pack(f"<{code}", value) for kind, code, value in values]
    flags = text("flags") + u32(ARRAY) + u32(7) + u64(2) + b"\x00\x01"
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(*fields, flags))
    metadata = read_gguf_header(path).metadata
    assert metadata == {f"k{kind}": value for kind, _, value in values} | {"flags": [False, True]}
    assert metadata["k7"] is True


def test_the_alignment_field_moves_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    directory = text("t") + u32(1) + u64(4) + u32(0) + u64(64)
    path.write_bytes(gguf(text("general.alignment") + u32(UINT32) + u32(256), tensors=directory, num_tensors=1))
    assert read_gguf_header(path).tensors["t"].start == 256 + 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 and more", "not a GGUF file"),
        (b"GGUF", "is cut off at byte"),
        (gguf(version=1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "version 50331648"),
        (gguf(num_tensors=5000), "states 5000 tensors"),
        (b"GGUF" + u32(3) + u64(0) + u64(5000), "states 5000 metadata fields"),
        (gguf(text("a") + u32(ARRAY) + u32(UINT8) + u64(5000)), "states 5000 items"),
        (gguf(text("a") + u32(ARRAY) + u32(STRING) + u64(5000)), "states 5000 items"),
        (gguf(text("a") + u32(ARRAY) + u32(ARRAY) + u64(1)), "items of type 9"),
        (gguf(text("a") + u32(STRING) + u64(5000)), "is cut off at byte"),
        (gguf(text("a") + u32(13)), "value type 13"),
        (gguf(text("a") + u32(STRING) + u64(2) + b"\xff\xfe"), "not UTF-8"),
        (gguf(*[text("a") + u32(UINT8) + b"\x00"] * 2), "the field 'a' twice"),
        (gguf(text("general.alignment") + u32(UINT32) + u32(48)), "alignment is 48"),
        (gguf(tensors=text("t") + u32(5) + bytes(60), num_tensors=1), "5 dimensions"),
        (gguf(tensors=(text("t") + u32(1) + u64(1) + u32(0) + u64(0)) * 2, num_tensors=2), "tensor 't' twice"),
    ],
)
def test_threat_23_a_damaged_header_is_one_error_soon_and_small(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(BrokenCheckpoint, match=words):
        read_gguf_header(path)
    seconds = time.monotonic() - started
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak_bytes < 10_000_000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(change=st.data())
def test_threat_23_any_damage_of_the_header_is_an_error_or_nothing(
    tiny_file: Path, tmp_path: Path, change: st.DataObject
) -> None:
    content = bytearray(tiny_file.read_bytes())
    for _ in range(change.draw(st.integers(1, 4))):
        place = change.draw(st.integers(0, 9000))
        content[place] = change.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content[: change.draw(st.integers(0, len(content)))])
    try:
        header = read_gguf_header(path)
    except BrokenCheckpoint:
        return
    assert header.num_file_bytes == path.stat().st_size
