"""--lora: names and folders of adapters."""

from pathlib import Path

import pytest

from caravan.scheduler.config import MAX_ADAPTERS
from caravan.server.adapter_files import adapter_folders, adapter_sources, check_lora
from caravan.server.http.api_keys import ApiKeys, KeyAttributes
from caravan.server.settings import WrongSettings, load_settings


def test_names_and_folders_are_read() -> None:
    settings = load_settings({"lora": "poems=./a, org/code-v1.2=/b=c"}, {})
    assert adapter_folders(settings) == {"poems": Path("a"), "org/code-v1.2": Path("/b=c")}
    assert adapter_folders(load_settings({}, {})) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poems", "'poems' is not NAME=FOLDER"),
        ("poems=", "is not NAME=FOLDER"),
        ("=./a", "is not NAME=FOLDER"),
        ("a b=./a", "is not NAME=FOLDER"),
        ("a\n=./a", "is not NAME=FOLDER"),
        ("x" * 129 + "=./a", "is not NAME=FOLDER"),
        ("a=./a,a=./b", "the name a is there twice"),
        ("base=./a", "the name base is there twice"),
        (",".join(f"a{index}=./a" for index in range(MAX_ADAPTERS + 1)), "there are 101 adapters; at most 100"),
    ],
)
def test_wrong_names_are_refused(text: str, message: str) -> None:
    with pytest.raises(WrongSettings) as caught:
        check_lora(load_settings({"lora": text, "served_model_name": "base"}, {}), None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("models", "models.yaml"), ("engines", "ray://x"), ("tensor_parallel", "2")]
)
def test_what_cannot_be_combined_is_refused_by_name(tmp_path: Path, name: str, value: str) -> None:
    for option, lora in (("lora", "a=./a"), ("lora_folder", str(tmp_path))):
        settings = load_settings({option: lora, name: value}, {})
        flag, other = (one.replace("_", "-") for one in (option, name))
        with pytest.raises(WrongSettings, match=f"^--{flag} cannot be combined with --{other}"):
            check_lora(settings, None)


def test_a_folder_of_adapters_needs_to_exist_and_a_key_that_may_load_them(tmp_path: Path) -> None:
    folder = {"lora_folder": str(tmp_path)}
    check_lora(load_settings(folder, {}), None)
    with pytest.raises(WrongSettings, match="^--max-lora-rank needs --lora-folder"):
        check_lora(load_settings({"max_lora_rank": 8}, {}), None)
    with pytest.raises(WrongSettings, match="^--lora-folder: .*/none is not a folder"):
        check_lora(load_settings({"lora_folder": str(tmp_path / "none")}, {}), None)
    keys = {"alice": "a-long-secret"}
    with pytest.raises(WrongSettings, match="^--lora-folder: no API key may load an adapter"):
        check_lora(load_settings(folder, {}), ApiKeys(keys, {"alice": KeyAttributes(may_scrape=True)}))
    check_lora(load_settings(folder, {}), ApiKeys(keys, {"alice": KeyAttributes(may_load=True)}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    settings = load_settings({"lora": f"a={tmp_path}"}, {})
    with pytest.raises(ValueError, match=r"--lora a: .*adapter_config\.json: No such file"):
        adapter_sources(settings)
