"""API keys: names, files and invalid keys."""

from pathlib import Path

import pytest

from caravan.server.http.api_keys import ApiKeys, KeyAttributes, WrongKeys, load_keys
from caravan.server.settings import WrongSettings, load_settings


def test_keys_are_read_from_the_option_and_the_file_with_their_names(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# people\n\nalice: secret-of-alice\n  bob :secret-of:bob\n")
    keys = load_keys(["first-secret", "second-secret"], file)
    assert keys is not None
    assert list(keys.names) == ["key-1", "key-2", "alice", "bob"]
    found = [keys.find(key) for key in (b"secret-of-alice", b"secret-of:bob", b"second-secret")]
    assert [key and key.name for key in found] == ["alice", "bob", "key-2"]
    for wrong in (b"", b"secret-of-alic", b"secret-of-alice ", b"\xff"):
        assert keys.find(wrong) is None


def test_without_keys_there_is_no_authentication() -> None:
    assert load_keys([], None) is None
    assert load_settings({}, {}).load_keys() is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("alice", "not `name: key`"),
        ("alice: short", "at least 8"),
        ("alice: has a space", "no space"),
        (": nameless-key", "name"),
        ("a: same-secret\nb: same-secret", "same key"),
        ("a: one-secret\na: two-secret", "repeats the name"),
        ("a: one-secret, scrapes", "unknown attribute"),
        ("a: one-secret,two-secret", "unknown attribute"),
        ("a: one-secret, min-priority=1", "-1000 to 0"),
        ("a: one-secret, min-priority=-1001", "-1000 to 0"),
        ("a: one-secret, min-priority=-5.5", "-1000 to 0"),
        ("a: one-secret,", "unknown attribute"),
    ],
)
def test_an_invalid_key_file_is_rejected_without_quoting_keys(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(WrongSettings, match=reason) as caught:
        load_settings({"api_key_file": str(file)}, {}).load_keys()
    assert "secret" not in str(caught.value).replace(str(file), "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongSettings, match="nowhere"):
        load_settings({"api_key_file": str(tmp_path / "nowhere")}, {}).load_keys()


def test_keys_are_not_shown_in_settings() -> None:
    assert "top-secret" not in repr(load_settings({"api_key": "top-secret"}, {}))


def test_only_digests_are_kept() -> None:
    keys = ApiKeys({"alice": "secret-of-alice"})
    assert "secret-of-alice" not in repr(vars(keys))


def test_the_length_of_key_names_is_limited() -> None:
    with pytest.raises(WrongKeys, match="64"):
        ApiKeys({"x" * 65: "long-enough"})


def test_a_line_of_the_key_file_may_have_attributes(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        "plain: secret-1\nprometheus: secret-2, scrape\nurgent: secret-3 ,min-priority = -5, scrape, adapters\n"
    )
    keys = load_keys(["secret-4"], file)
    assert keys is not None
    found = [keys.find(b"secret-%d" % number) for number in (1, 2, 3, 4)]
    marks = {key.name: (key.may_scrape, key.may_load, key.min_priority) for key in found if key is not None}
    assert marks == {
        **{"key-1": (False, False, 0), "plain": (False, False, 0)},
        **{"prometheus": (True, False, 0), "urgent": (True, True, -5)},
    }
    assert keys.can_any_load


@pytest.mark.parametrize(("marked", "allowed"), [([], ["a", "b"]), (["b"], ["b"])])
def test_if_a_key_has_the_scrape_attribute_only_such_keys_may_scrape(marked: list[str], allowed: list[str]) -> None:
    marks = {name: KeyAttributes(may_scrape=True) for name in marked}
    keys = ApiKeys({"a": "secret-of-a", "b": "secret-of-b"}, marks)
    records = [record for key in (b"secret-of-a", b"secret-of-b") if (record := keys.find(key)) is not None]
    assert [record.name for record in records if keys.can_scrape(record)] == allowed
