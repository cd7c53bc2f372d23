"""The file of --config: both spellings, and errors that name the file, the line and the nearest option."""

from pathlib import Path

import pytest

from caravan.server.settings import Settings, WrongSettings, load_settings, replica_settings


def load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "caravan.yaml"
    file.write_text(text)
    return load_settings({"config": str(file)}, {})


def test_options_have_two_spellings(tmp_path: Path) -> None:
    settings = load(tmp_path, "max-num-seqs: 3\nmax_model_len: 99\nchat-template-kwargs: {enable_thinking: false}\n")
    assert (settings.max_num_seqs, settings.max_model_len) == (3, 99)
    assert settings.template_variables == {"enable_thinking": False}


@pytest.mark.parametrize("text", ["", "# nothing\n", "port:\nmax_wait: null\n"])
def test_an_option_without_a_value_has_its_default(tmp_path: Path, text: str) -> None:
    settings = load(tmp_path, text)
    assert (settings.port, settings.max_wait) == (8000, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dtype: float32\nprot: 1\n", ", line 2: unknown option `prot`. Did you mean `port`?"),
        ("max-num-seq: 1\n", ", line 1: unknown option `max-num-seq`. Did you mean `max_num_seqs`?"),
        ("xyz: 1\n", ", line 1: unknown option `xyz`. `caravan serve --help` lists the options."),
        ("config: other.yaml\n", ", line 1: unknown option `config`."),
        ("port: 1\n\nport: 2\n", ", line 3: `port` is set twice."),
        ("max-num-seqs: 1\nmax_num_seqs: 1\n", ", line 2: `max_num_seqs` is set twice."),
        ("- 1\n", " must be a YAML mapping of options, such as `port: 8001`."),
        ("port: [1\n", ": while parsing a flow sequence"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(WrongSettings) as raised:
        load(tmp_path, text)
    assert f"{tmp_path}/caravan.yaml{problem}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_value_names_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongSettings) as raised:
        load(tmp_path, "dtype: float32\nport: 99999\n")
    assert str(raised.value).startswith(
        f"Invalid value '99999' for --port ({tmp_path}/caravan.yaml, line 2): it should be"
    )
    monkeypatch.setenv("CARAVAN_PORT", "x")
    with pytest.raises(WrongSettings, match=r"^Invalid value 'x' for --port \(CARAVAN_PORT\): it should be"):
        load_settings({}, {"CARAVAN_PORT": "x"})


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("CARAVAN_PROT", "Did you mean `CARAVAN_PORT`?"),
        ("CARAVAN_QQQQQQQQQQQQQQQQQQQQQQQQ", "`caravan serve --help` lists the variables."),
    ],
)
def test_an_unknown_variable_gets_a_hint(variable: str, hint: str) -> None:
    with pytest.raises(WrongSettings) as raised:
        load_settings({}, {variable: "1"})
    assert str(raised.value) == f"Unknown variable {variable}. {hint}"


def test_a_demo_has_a_small_pool_and_no_other_size() -> None:
    settings = load_settings({"demo": True}, {})
    settings.check_demo()
    assert settings.start_engine(Path("m")).limits.max_pool_tokens == 1024
    load_settings({"kv_cache_memory": "1GiB"}, {}).check_demo()
    for name, value in {"kv_cache_memory": "1GiB", "models": "a.yaml"}.items():
        with pytest.raises(WrongSettings, match=f"^--demo cannot be combined with --{name.replace('_', '-')}. Remove"):
            load_settings({"demo": True, name: value}, {}).check_demo()
    with pytest.raises(WrongSettings, match="^--demo has room for 1,024 tokens. Lower --max-model-len.$"):
        load_settings({"demo": True, "max_model_len": "1025"}, {}).check_demo()
    with pytest.raises(WrongSettings, match="^--demo cannot be combined with --kv-cache-memory"):
        replica_settings({"demo": True, "kv_cache_memory": "1GiB"})
