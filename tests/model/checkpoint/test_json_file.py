"""JsonFile: fields of the wrong kind are refused with their name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint import json_file as module
from caravan.model.checkpoint.json_file import JsonFile


@pytest.fixture
def file(tmp_path: Path) -> JsonFile:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"one": 1, "half": 0.5, "yes": True, "word": "a", "list": [1], "part": {"two": 2}}))
    return JsonFile(path)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda file: file.integer("half"), "half is 0.5; it must be a whole number"),
        (lambda file: file.integer("none"), "none is missing"),
        (lambda file: file.number("yes"), "yes is True; it must be a number"),
        (lambda file: file.flag("one", False), "one is 1; it must be true or false"),
        (lambda file: file.text("one"), "one is 1; it must be a text"),
        (lambda file: file.items("word"), "word is 'a'; it must be a list"),
        (lambda file: file.part("list"), "it must be an object"),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(
    file: JsonFile, read: Callable[[JsonFile], object], words: str
) -> None:
    with pytest.raises(BrokenCheckpoint) as caught:
        read(file)
    assert words in str(caught.value)


def test_fields_are_read_with_their_defaults(file: JsonFile) -> None:
    assert (file.integer("one"), file.number("half"), file.flag("yes", False)) == (1, 0.5, True)
    assert (file.text("word"), file.items("list"), file.items("none")) == ("a", [1], [])
    part = file.part("part")
    assert part is not None
    assert part.integer("two") == 2
    assert file.part("none") is None


def test_a_file_that_is_too_large_is_refused_before_it_is_read(file: JsonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JSON_BYTES", 10)
    with pytest.raises(BrokenCheckpoint, match="larger than 10 bytes"):
        JsonFile(file.path)
