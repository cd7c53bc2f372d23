"""A model from the hub, and what is said when it cannot come."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from caravan.download.errors import ModelNotFound, ModelUnavailable
from caravan.download.hub import fetch_from_hub, has_hub_cache, hub_failure
from tests.download.wheels import CONTENT, files_in, ignore_progress
from tests.support.model_hub import running_hub


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

    def test_a_folder_of_safetensors_is_fetched_with_its_small_files(
        self, tmp_path: Path, hub: tuple[str, list[str]]
    ) -> None:
        path = fetch_from_hub("org/folder", None, ignore_progress, endpoint=hub[0], cache=tmp_path)
        assert files_in(path) == ["config.json", "model.safetensors", "tokenizer.json"]

    def test_a_model_in_several_gguf_files_is_fetched_whole(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        path = fetch_from_hub("org/split", "m", ignore_progress, endpoint=hub[0], cache=tmp_path)
        assert path.name == "m-00001-of-00002.gguf"
        assert files_in(path.parent) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]

    def test_several_files_without_a_choice_are_listed(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        with pytest.raises(ModelNotFound, match="Available: m-Q4_0.gguf, m-Q8_0.gguf"):
            fetch_from_hub("org/many", None, ignore_progress, endpoint=hub[0], cache=tmp_path)

    def test_a_repository_that_is_not_there_is_one_readable_line(
        self, tmp_path: Path, hub: tuple[str, list[str]]
    ) -> None:
        with pytest.raises(ModelUnavailable) as caught:
            fetch_from_hub("org/none", None, ignore_progress, endpoint=hub[0], cache=tmp_path)
        assert str(caught.value) == (
            "Hugging Face has no public repository org/none. Check the id, or set HF_TOKEN if it is private."
        )

    def test_a_gated_repository_says_where_to_ask(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        with pytest.raises(ModelUnavailable, match="gated. Accept its terms at https://huggingface.co/org/gated"):
            fetch_from_hub("org/gated", None, ignore_progress, endpoint=hub[0], cache=tmp_path)

    def test_a_hub_in_trouble_is_one_readable_line(self, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
        with pytest.raises(
            ModelUnavailable, match="^Hugging Face returned status 503 for org/broken. Try again later.$"
        ):
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
        with pytest.raises(ModelNotFound, match="Available: m-Q8_0.gguf"):
            fetch_from_hub("org/many", "Q4_0", ignore_progress, endpoint=endpoint, cache=tmp_path)

    def test_what_cannot_be_an_id_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ModelUnavailable, match="org/--name is not a valid Hugging Face id"):
            fetch_from_hub("org/--name", None, ignore_progress, cache=tmp_path)

    def test_a_full_disk_is_one_readable_line(self) -> None:
        failure = hub_failure("org/one", OSError(errno.ENOSPC, "No space left on device"))
        assert failure == (
            "Cannot store org/one in the Hugging Face cache: No space left on device. Set HF_HOME to a writable "
            "folder with free space."
        )


@pytest.mark.parametrize(
    ("environ", "home", "has_one"),
    [({}, "/home/a", True), ({}, None, False), ({"HF_HOME": "/m"}, None, True), ({"XDG_CACHE_HOME": "/m"}, None, True)],
)
def test_without_a_home_the_hub_s_cache_must_be_named(
    environ: dict[str, str], home: str | None, has_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home_folder() -> Path:
        if home is None:
            raise RuntimeError
        return Path(home)

    monkeypatch.setattr(Path, "home", home_folder)
    assert has_hub_cache(environ) == has_one
