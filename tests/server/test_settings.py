"""Settings: sources, their precedence, and errors."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from caravan.scheduler.config import EngineLimits
from caravan.server.engine.process import engine_environment
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.settings import Settings, WrongSettings, load_settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CARAVAN_{name.upper()}", raising=False)


def test_a_flag_wins_over_a_variable_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "caravan.yaml"
    file.write_text("port: 1\nhost: from-file\nmax_num_seqs: 3\n")
    monkeypatch.setenv("CARAVAN_CONFIG", str(file))
    monkeypatch.setenv("CARAVAN_PORT", "2")
    monkeypatch.setenv("CARAVAN_HOST", "from-variable")
    settings = load_settings({"port": "3"})
    assert (settings.port, settings.host, settings.max_num_seqs, settings.block_size) == (3, "from-variable", 3, 16)


def test_the_file_can_be_named_by_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "caravan.yaml"
    file.write_text("kv_cache_memory: 64MiB\ndtype: float32\n")
    settings = load_settings({"config": str(file)})
    assert settings.kv_cache_memory == 64 * 2**20
    assert settings.dtype == "float32"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"port": "70000"}, "Invalid value '70000' for --port: it should be less than or equal to 65535."),
        ({"port": "x"}, "Invalid value 'x' for --port: it should be a valid integer"),
        ({"dtype": "float16"}, "Invalid value 'float16' for --dtype: it should be 'auto', 'float32' or 'bfloat16'."),
        ({"kv_cache_memory": "lots"}, "Invalid value 'lots' for --kv-cache-memory: it must be a size such as 4GiB."),
        ({"kv_cache_memory": "4GX"}, "Invalid value '4GX' for --kv-cache-memory: it must be a size such as 4GiB."),
        ({"kv_cache_memory": "0"}, "Invalid value '0' for --kv-cache-memory: it should be greater than or equal to 1."),
        ({"max_num_seqs": "0"}, "Invalid value '0' for --max-num-seqs"),
        ({"config": "/nowhere/caravan.yaml"}, "settings file /nowhere/caravan.yaml does not exist. Check --config."),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongSettings) as raised:
        load_settings(flags)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["prot: 1\n", "port: [1\n", "- 1\n", "port: 99999\n"])
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "caravan.yaml"
    file.write_text(text)
    with pytest.raises(WrongSettings) as raised:
        load_settings({"config": str(file)})
    assert "\n" not in str(raised.value)


def test_a_variable_that_is_no_option_is_named() -> None:
    with pytest.raises(WrongSettings, match=r"Unknown variable CARAVAN_PROT. Did you mean `CARAVAN_PORT`?"):
        load_settings({}, {"CARAVAN_PROT": "1"})


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAVAN_PORT", "")
    assert load_settings({}).port == 8000


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, ("smollm2",)),
        ({"model": "org/name"}, ("org/name",)),
        ({"model": "some/path/Tiny.Q4_1.gguf"}, ("Tiny.Q4_1",)),
        ({"model": "stories15M.bin"}, ("stories15M",)),
        ({"served_model_name": "a, b,,c"}, ("a", "b", "c")),
        ({"served_model_name": " , "}, ("smollm2",)),
    ],
)
def test_the_model_has_a_name(flags: dict[str, str], names: tuple[str, ...]) -> None:
    assert load_settings(flags).names == names


def test_a_folder_gives_its_whole_name(tmp_path: Path) -> None:
    folder = tmp_path / "Llama-3.2-1B"
    folder.mkdir()
    assert load_settings({"model": str(folder)}).names == ("Llama-3.2-1B",)


def test_the_engine_gets_all_its_limits() -> None:
    flags = {"kv_cache_memory": "1MiB", "max_model_len": "99", "max_num_seqs": "5", "max_batch_tokens": "32"}
    start = load_settings({**flags, "block_size": "8", "num_threads": "2", "dtype": "bfloat16"}).start_engine(Path("m"))
    assert (start.model_path, start.dtype, start.num_threads) == ("m", "bfloat16", 2)
    assert start.weights_cache_bytes == 16 * 2**30
    assert load_settings({"weights_cache_size": "0"}).start_engine(Path("m")).weights_cache_bytes == 0
    limits = EngineLimits(
        kv_cache_memory_bytes=2**20, max_model_len=99, block_size=8, max_batch_tokens=32, max_num_seqs=5
    )
    assert start.limits == limits
    start = load_settings({**flags, "block_size": "8", "standby": True}).start_engine(Path("m"))
    assert start.limits == msgspec.structs.replace(limits, has_standby=True)


def test_a_spill_file_has_a_size_and_perhaps_a_path() -> None:
    settings = load_settings({"kv_spill": "4MiB", "kv_spill_path": "/tmp/kv"})
    settings.check_kv_spill()
    start = settings.start_engine(Path("m"))
    assert (start.kv_spill_bytes, start.kv_spill_path, start.is_replacement) == (4 * 2**20, "/tmp/kv", False)
    start = load_settings({}).start_engine(Path("m"))
    assert (start.kv_spill_bytes, start.kv_spill_path) == (0, "")
    with pytest.raises(WrongSettings, match="--kv-spill-path needs --kv-spill"):
        load_settings({"kv_spill_path": "/tmp/kv"}).check_kv_spill()
    with pytest.raises(WrongSettings, match="--kv-spill"):
        load_settings({"kv_spill": "0"})


def test_a_draft_model_needs_speculation() -> None:
    settings = load_settings({"draft_model": "smollm2"})
    settings.check_draft_model()
    assert settings.start_engine(Path("m"), Path("d")).draft_model_path == "d"
    assert settings.start_engine(Path("m")).draft_model_path == ""
    with pytest.raises(WrongSettings, match="--draft-model needs --speculation auto"):
        load_settings({"draft_model": "smollm2", "speculation": "off"}).check_draft_model()


def test_the_folder_of_an_adapter_is_absolute() -> None:
    assert load_settings({"merge_lora": "x"}).start_engine(Path("m")).merge_lora_path == str(Path("x").absolute())
    assert load_settings({}).start_engine(Path("m")).merge_lora_path == ""


def test_several_processes_for_a_model_have_neither_a_standby_nor_a_spill_file() -> None:
    settings = load_settings({"tensor_parallel": "3"})
    settings.check_tensor_parallel()
    assert settings.start_engine(Path("m")).num_ranks == 3
    load_settings({"standby": True}).check_tensor_parallel()
    for name, value in (("standby", True), ("kv_spill", "1MiB")):
        with pytest.raises(WrongSettings, match=r"cannot be combined with --tensor-parallel\. Remove one"):
            load_settings({"tensor_parallel": "2", name: value}).check_tensor_parallel()


def test_ranks_on_other_hosts_need_an_address_and_a_secret(tmp_path: Path) -> None:
    (secret := tmp_path / "secret").write_text("0123456789abcdef")
    options = {
        "tensor_parallel": "3",
        "remote_ranks": "2",
        "rank_address": "10.0.0.1:7000",
        "rank_secret_file": str(secret),
    }
    settings = load_settings(options)
    settings.check_tensor_parallel()
    start = settings.start_engine(Path("m"))
    assert (start.num_ranks, start.num_joining_ranks) == (3, 2)
    assert (start.rank_address, start.rank_secret_path) == ("10.0.0.1:7000", str(secret))
    (tmp_path / "short").write_text("short")
    (models := tmp_path / "models.yaml").write_text("- model: one\n")
    for changes, sentence in (
        ({"rank_address": None}, "--remote-ranks needs --rank-address and --rank-secret-file"),
        ({"rank_secret_file": None}, "--remote-ranks needs --rank-address and --rank-secret-file"),
        ({"remote_ranks": "0"}, "--rank-address and --rank-secret-file need --remote-ranks"),
        ({"remote_ranks": "0", "rank_address": None}, "--rank-address and --rank-secret-file need --remote-ranks"),
        ({"tensor_parallel": "2"}, "--remote-ranks 2 must be less than --tensor-parallel 2"),
        ({"rank_address": "10.0.0.1"}, "--rank-address: 10.0.0.1 is not HOST:PORT"),
        ({"rank_secret_file": str(tmp_path / "short")}, "--rank-secret-file: The secret of ranks in .* has 5 bytes"),
        ({"models": str(models)}, "--remote-ranks cannot be combined with --models"),
        ({"merge_lora": "x"}, "--remote-ranks cannot be combined with --merge-lora"),
    ):
        with pytest.raises(WrongSettings, match=sentence):
            load_settings(options | changes).check_tensor_parallel()


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_a_word_that_yaml_reads_as_a_truth_value_stays_a_word(tmp_path: Path, word: str) -> None:
    file = tmp_path / "caravan.yaml"
    file.write_text(f"speculation: {word}\n")
    assert load_settings({"config": str(file)}).speculation == word


def test_an_engine_that_waits_gives_its_core_away_unless_its_user_says_otherwise() -> None:
    assert engine_environment({})["GOMP_SPINCOUNT"] == "1000"
    assert engine_environment({"GOMP_SPINCOUNT": "7", "HOME": "/"})["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_let_in_with_a_key_or_on_purpose_only(host: str) -> None:
    with pytest.raises(WrongSettings, match="there is no API key"):
        load_settings({"host": host}).load_keys()
    assert load_settings({"host": host, "insecure": True}).load_keys() is None
    assert load_settings({"host": host, "api_key": "a-good-key"}).load_keys() is not None
    assert load_settings({"host": "127.0.0.1"}).load_keys() is None


def test_threat_35_keys_without_names_are_refused_with_a_folder_that_keeps_files_by_name(tmp_path: Path) -> None:
    flags = {"batch_folder": str(tmp_path), "host": "127.0.0.1"}
    with pytest.raises(WrongSettings, match="Name the keys in --api-key-file"):
        load_settings(flags | {"api_key": "key-of-ann, key-of-bob"}).load_keys()
    (tmp_path / "keys").write_text("ann: key-of-ann\nbob: key-of-bob\n")
    named = {"api_key": "key-of-cyd", "api_key_file": str(tmp_path / "keys")}
    keys = load_settings(flags | named).load_keys()
    assert keys is not None
    assert list(keys.names) == ["key-1", "ann", "bob"]


def test_a_certificate_and_its_key_belong_together(tmp_path: Path) -> None:
    file = tmp_path / "one.pem"
    file.touch()
    for flags, says in (
        ({"tls_certificate": str(file)}, "need each other"),
        ({"tls_key": str(file)}, "need each other"),
        ({"tls_certificate": str(file), "tls_key": str(tmp_path / "two.pem")}, "does not exist"),
    ):
        with pytest.raises(WrongSettings, match=says):
            load_settings(flags).check_tls()
    load_settings({"tls_certificate": str(file), "tls_key": str(file)}).check_tls()
    load_settings({}).check_tls()


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("0.1s", 0.1), ("2", 2.0), ("1.5 s", None), ("-1s", None)]
)
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(WrongSettings, match="max-inter-token-latency"):
            load_settings({"max_inter_token_latency": text})
    else:
        assert load_settings({"max_inter_token_latency": text}).max_inter_token_latency == pytest.approx(seconds)


def test_limits_of_the_queue_can_be_set() -> None:
    flags = {"max_queued_requests": "3", "max_queued_tokens": "500", "max_wait": "2.5"}
    assert load_settings(flags).queue_limits == QueueLimits(3, 500, 2.5)
    with pytest.raises(WrongSettings, match="max-wait"):
        load_settings({"max_wait": "0"})


def test_variables_of_the_template_come_as_json_or_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "caravan.yaml"
    file.write_text("chat_template_kwargs:\n  enable_thinking: false\n")
    assert load_settings({"config": str(file)}).template_variables == {"enable_thinking": False}
    flags = {"chat_template_kwargs": '{"tone": "kind", "level": 2.5}'}
    assert load_settings(flags).template_variables == {"tone": "kind", "level": 2.5}
    assert load_settings({}).template_variables == {}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("x", "must be JSON"),
        ("[1]", "must be an object"),
        ('{"tools": 1}', "cannot have tools"),
        ('{"a": {}}', "of a is"),
    ],
)
def test_wrong_variables_of_the_template_are_one_line(value: str, says: str) -> None:
    with pytest.raises(WrongSettings, match=says):
        load_settings({"chat_template_kwargs": value})


def test_a_unix_socket_needs_neither_a_key_nor_an_address() -> None:
    settings = load_settings({"uds": "/tmp/x"})
    settings.check_uds()
    assert settings.load_keys() is None
    for flags in ({"host": "0.0.0.0"}, {"port": "1"}):
        with pytest.raises(WrongSettings, match="cannot be combined"):
            load_settings(flags | {"uds": "/tmp/x"}).check_uds()


@pytest.mark.parametrize(("text", "path"), [("/llm/", "/llm"), ("/a/b-c", "/a/b-c"), ("", ""), ("/", "")])
def test_a_prefix_is_a_path(text: str, path: str) -> None:
    assert load_settings({"root_path": text}).root_path == path
    for wrong in ("llm", "/a b", "//a", "http://x/y", '/"'):
        with pytest.raises(WrongSettings, match="must be a path"):
            load_settings({"root_path": wrong})


@pytest.mark.parametrize(
    ("options", "has_keys", "expected"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"host": "0.0.0.0", "insecure": True}, False, False),
        ({"uds": "/tmp/s.sock"}, False, True),
        ({"learn": "on", "host": "0.0.0.0"}, True, True),
        ({"learn": "off"}, False, False),
    ],
)
def test_threat_39_lessons_are_for_this_machine_without_keys_unless_an_option_says_otherwise(
    options: dict[str, Any], has_keys: bool, expected: bool
) -> None:
    assert load_settings(options).has_lessons(has_keys=has_keys) is expected
