"""GET /v1/server: state, limits and options without secrets, and the usage of the caller's key only."""

from pathlib import Path
from typing import Any

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import EngineReady
from caravan.server.http.api_keys import ApiKeys
from caravan.server.settings import load_settings
from caravan.server.shown_options import shown_options
from tests.server.openai.api import answered, open_api

KEYS = {"ada": "a-long-key-of-ada", "bob": "a-long-key-of-bob"}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


async def test_a_server_shows_its_models_and_limits() -> None:
    async with open_api() as api:
        facts = answered(await api.http.get("/v1/server"))
        assert (facts["version"], facts["is_ready"], facts["key"], facts["options"]) == ("1.2.3", True, None, [])
        (model,) = facts["models"]
        assert (model["names"], model["state"]) == (["fake", "org/fake-7b"], "loaded")
        assert (model["num_blocks"], model["max_model_len"], model["weights"]) == (64, 512, "")
        assert facts["limits"]["max_body_bytes"] == 8 * 2**20
        config = EngineConfig(num_blocks=64, max_model_len=512)
        api.engine.report = EngineReady(
            config=config,
            vocab_size=260,
            num_parameters=134_000_000,
            weight_bytes=5,
            kv_cache_bytes=7,
            kv_cache_dtype="int8",
            weights="as in the file",
            load_seconds=1.0,
        )
        (model,) = answered(await api.http.get("/v1/server"))["models"]
        assert (model["num_parameters"], model["weights"], model["kv_cache_dtype"]) == (
            134_000_000,
            "as in the file",
            "int8",
        )


async def test_a_key_sees_its_own_usage_and_no_name_of_another_key() -> None:
    async with open_api(keys=ApiKeys(KEYS)) as api:
        assert (await api.http.get("/v1/server")).status_code == 401
        body = {"model": "fake", "prompt": "hi", "max_tokens": 3}
        used = answered(await api.http.post("/v1/completions", json=body, headers=bearer("ada")))["usage"]
        response = await api.http.get("/v1/server", headers=bearer("ada"))
        assert answered(response)["key"] == {
            "name": "ada",
            "num_requests": 1,
            "num_prompt_tokens": used["prompt_tokens"],
            "num_generation_tokens": used["completion_tokens"],
        }
        assert "bob" not in response.text
        assert answered(await api.http.get("/v1/server", headers=bearer("bob")))["key"]["num_requests"] == 0


def options_of(**options: Any) -> dict[str, tuple[str, bool]]:
    return {one.name: (one.value, one.is_set) for one in shown_options(load_settings(options, {}))}


def test_all_options_are_shown_and_those_that_are_set_are_marked() -> None:
    options = options_of(max_num_seqs=32, kv_cache_memory="4GiB", standby=True)
    assert options["max-num-seqs"] == ("32", True)
    assert options["kv-cache-memory"] == ("4 GiB", True)
    assert options["standby"] == ("on", True)
    assert options["dtype"] == ("auto", False)
    assert options["max-wait"] == ("default", False)
    assert options["insecure"] == ("off", False)


def test_options_show_no_secrets_paths_or_addresses(tmp_path: Path) -> None:
    model = tmp_path / "folder" / "weights.gguf"
    options = options_of(
        api_key="a-key-that-nobody-knows",
        api_key_file=tmp_path / "keys",
        model=str(model),
        batch_folder=tmp_path / "batches",
        trusted_proxies="10.1.2.3",
        allowed_hosts="inner.example.org",
        tls_key=tmp_path / "key.pem",
        host="10.9.9.9",
        remote_ranks=1,
        tensor_parallel=2,
        rank_address="10.8.8.8:7000",
        rank_secret_file=tmp_path / "secret",
    )
    text = str(options)
    for secret in ("nobody-knows", str(tmp_path), "10.1.2.3", "inner.example.org", "key.pem", "10.9.9.9", "10.8.8.8"):
        assert secret not in text
    assert options["api-key"] == ("set", True)
    assert options["model"] == ("weights.gguf", True)
    assert options["batch-folder"] == ("set", True)
