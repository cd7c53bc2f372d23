"""The file of --models: its options, and errors that name file, line and option."""

from pathlib import Path
from typing import Any

import pytest

from caravan.server.generation.request_limits import QueueLimits
from caravan.server.models_file import OWN_OPTIONS, load_models
from caravan.server.settings import Settings, WrongSettings, load_settings


def models(tmp_path: Path, text: str, **flags: Any) -> list[Settings]:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    given = {"models": str(file)} | flags
    return load_models(load_settings(given, {}), given)


def test_options_of_the_server_are_defaults_and_entries_override_them(tmp_path: Path) -> None:
    text = """
- model: org/one
  quantization: int8
  served_model_name: one,uno
- model: ./two.gguf
  speculation: off
  kv_cache_memory: 1GiB
  sleep_after: 10m
  max_queued_requests: 7
  max_wait: 2.5
"""
    one, two = models(
        tmp_path, text, quantization="int4", max_model_len="1024", sleep_after="30s", max_queued_tokens="900"
    )
    assert one.names == ("one", "uno")
    assert two.names == ("two",)
    assert (one.model, one.quantization, one.max_model_len, one.sleep_after) == ("org/one", "int8", 1024, 30)
    assert (two.model, two.quantization, two.max_model_len, two.sleep_after) == ("./two.gguf", "int4", 1024, 600)
    assert two.speculation == "off"
    assert two.kv_cache_memory == 2**30
    assert one.kv_cache_memory is None
    assert one.queue_limits == QueueLimits(512, 900, None)
    assert two.queue_limits == QueueLimits(7, 900, 2.5)


def test_every_own_option_is_a_setting() -> None:
    assert set(Settings.model_fields) > OWN_OPTIONS


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "models.yaml must be a YAML list of models, such as `- model: org/name`."),
        ("[]", "models.yaml must be a YAML list of models, such as `- model: org/name`."),
        ("model: a", "models.yaml must be a YAML list of models, such as `- model: org/name`."),
        ("- a", "models.yaml, line 1: an entry must be a mapping of options, such as `- model: org/name`."),
        ("- model: a\n\n- quantization: int8", "models.yaml, line 3: `model` is missing."),
        ("- model: ''", "models.yaml, line 1: `model` is missing."),
        (
            "- model: a\n  quantisation: int8",
            "models.yaml, line 2: unknown option `quantisation`. Did you mean `quantization`?",
        ),
        ("- model: a\n  port: 1", "models.yaml, line 2: `port` is an option of the whole server. Set --port."),
        (
            "- model: a\n  drain_timeout: 1",
            "models.yaml, line 2: `drain_timeout` is an option of the whole server. Set --drain-timeout.",
        ),
        ("- model: a\n  model: b", "models.yaml, line 2: `model` is set twice."),
        (
            "- model: a\n- model: b\n  block_size: 0",
            "models.yaml, line 2: Invalid value '0' for --block-size: it should be greater than or equal to 1.",
        ),
        (
            "- model: a\n  draft_model: b\n  speculation: off",
            "models.yaml, line 1: --draft-model needs --speculation auto or on. Remove one of the options.",
        ),
        (
            "- model: a\n- model: b\n  served_model_name: c,a",
            "models.yaml, line 2: the name a belongs to {}/models.yaml, line 1. Set `served_model_name`.",
        ),
    ],
)
def test_a_wrong_entry_is_an_error_that_names_its_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(WrongSettings) as caught:
        models(tmp_path, text)
    assert str(caught.value) == f"{tmp_path}/{problem.format(tmp_path)}"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WrongSettings, match=r"^Cannot read --models .*models.yaml: .*line 1"):
        models(tmp_path, "- model: [a")
    given = {"models": str(tmp_path / "none.yaml")}
    with pytest.raises(WrongSettings, match=r"^Cannot read --models .*none.yaml: .*No such file"):
        load_models(load_settings(given, {}), given)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"model": "smollm2"}, "MODEL cannot be combined with --models. Set `model` in "),
        (
            {"served_model_name": "a"},
            "--served-model-name cannot be combined with --models. Set `served_model_name` in ",
        ),
    ],
)
def test_options_that_would_be_the_same_for_all_models_are_errors(
    flags: dict[str, str], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(WrongSettings, match=f"^{problem}"):
        models(tmp_path, "- model: a", **flags)


def test_models_do_not_share_a_spill_file() -> None:
    flags = {"models": "a.yaml", "kv_spill": "1GiB"}
    load_settings(flags, {}).check_models()
    with pytest.raises(WrongSettings, match="^--kv-spill-path is the file of one model and cannot be combined"):
        load_settings({**flags, "kv_spill_path": "file"}, {}).check_models()


def test_a_budget_needs_models() -> None:
    with pytest.raises(WrongSettings, match="^--models-memory needs --models. Set both or neither.$"):
        load_settings({"models_memory": "4GiB"}, {}).check_models()
    load_settings({"models_memory": "4GiB", "models": "a.yaml"}, {}).check_models()
