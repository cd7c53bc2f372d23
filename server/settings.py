"""Settings: every option of `caravan serve`, as a flag, a CARAVAN_* variable and a key of the YAML file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from caravan.scheduler.config import EngineLimits
from caravan.scheduler.messages import StartEngine
from caravan.server.batches.settings import BatchSettings
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.http.api_keys import ApiKeys, WrongKeys, load_keys
from caravan.server.http.host_names import is_loopback
from caravan.server.option_groups import (
    LimitSettings,
    LogSettings,
    MemorySettings,
    ModelSettings,
    NetworkSettings,
    SecuritySettings,
)

ENV_PREFIX = "CARAVAN_"


class WrongSettings(ValueError):
    """An invalid option; the text is one line that names it."""


class Settings(
    BaseSettings,
    LogSettings,
    SecuritySettings,
    NetworkSettings,
    BatchSettings,
    LimitSettings,
    MemorySettings,
    ModelSettings,
):
    """Every option. A flag wins over a variable, a variable over the file, the file over the default."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    config: Path | None = Field(None, description="YAML file with any of these options, such as `max_num_seqs: 32`.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, strongest first."""
        file = init_settings().get("config") or env_settings().get("config")
        return init_settings, env_settings, *([YamlConfigSettingsSource(settings_cls, Path(file))] if file else [])

    @property
    def names(self) -> tuple[str, ...]:
        """The model names accepted in requests; responses use the first."""
        if self.served_model_name is None:
            path = Path(self.model)
            if path.is_dir():
                return (path.resolve().name,)
            return (path.stem if path.suffix.lower() in (".gguf", ".bin") else self.model,)
        return tuple(filter(None, map(str.strip, self.served_model_name.split(",")))) or (self.model,)

    @property
    def queue_limits(self) -> QueueLimits:
        """Limits of the queue."""
        return QueueLimits(self.max_queued_requests, self.max_queued_tokens, self.max_wait)

    def load_keys(self) -> ApiKeys | None:
        """Return the accepted API keys, None if requests need none; raises WrongSettings."""
        keys = [key.strip() for key in (self.api_key or "").split(",") if key.strip()]
        if self.batch_folder is not None and len(keys) > 1:
            raise WrongSettings(
                "--batch-folder keeps files by the names of keys, and those of --api-key change with their places. "
                "Name the keys in --api-key-file."
            )
        try:
            found = load_keys(keys, self.api_key_file)
        except (WrongKeys, OSError, UnicodeDecodeError) as error:
            raise WrongSettings(f"--api-key, --api-key-file: {error}") from None
        if found is None and not self.insecure and not is_loopback(self.host):
            raise WrongSettings(
                f"--host {self.host} lets other machines connect, but there is no API key. Set --api-key or "
                "--api-key-file, or --insecure to serve them without one."
            )
        return found

    def check_tls(self) -> None:
        """Raise WrongSettings unless there are both a certificate and its key, or neither."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise WrongSettings("--tls-certificate and --tls-key need each other. Set both or neither.")
        for name, file in (("--tls-certificate", self.tls_certificate), ("--tls-key", self.tls_key)):
            if file is not None and not file.is_file():
                raise WrongSettings(f"{name}: {file} does not exist or is not a file. Check the path.")

    def check_draft_model(self) -> None:
        """Raise WrongSettings for a draft model without speculation."""
        if self.draft_model is not None and self.speculation == "off":
            raise WrongSettings("--draft-model needs --speculation auto or on. Remove one of the options.")

    def check_kv_spill(self) -> None:
        """Raise WrongSettings for the path of a spill file without its size."""
        if self.kv_spill_path is not None and self.kv_spill is None:
            raise WrongSettings("--kv-spill-path needs --kv-spill, the size of the file. Set both or neither.")

    def check_models(self) -> None:
        """Raise WrongSettings for a budget without models that share it, or one spill file for several models."""
        if self.models is None and self.models_memory is not None:
            raise WrongSettings("--models-memory needs --models. Set both or neither.")
        if self.models is not None and self.kv_spill_path is not None:
            raise WrongSettings(
                "--kv-spill-path is the file of one model and cannot be combined with --models. Remove it: "
                "each model then has a file of its own in the cache."
            )

    def start_engine(
        self, model_path: Path, draft_model_path: Path | None = None, *, is_shared: bool = False
    ) -> StartEngine:
        """Return the models that the engine loads, and its options; `is_shared` if several API keys use it."""
        return StartEngine(
            model_path=str(model_path),
            draft_model_path=str(draft_model_path or ""),
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            fast_matmul=self.fast_matmul,
            kv_cache_dtype=self.kv_cache_dtype,
            num_threads=self.num_threads,
            kv_spill_bytes=int(self.kv_spill or 0),
            kv_spill_path=str(self.kv_spill_path or ""),
            weights_cache_bytes=int(self.weights_cache_size),
            is_profiled=self.profile,
            limits=EngineLimits(
                kv_cache_memory_bytes=None if self.kv_cache_memory is None else int(self.kv_cache_memory),
                max_model_len=self.max_model_len,
                block_size=self.block_size,
                max_batch_tokens=self.max_batch_tokens,
                max_num_seqs=self.max_num_seqs,
                speculation=self.speculation,
                max_inter_token_seconds=self.max_inter_token_latency,
                is_shared=is_shared,
                has_standby=self.standby,
            ),
        )


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that result from the given flags, the variables and the file; raises WrongSettings."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for variable in environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            raise WrongSettings(f"Unknown variable {variable}. The known ones are {', '.join(sorted(known))}.")
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = ".".join(map(str, problem["loc"])).replace("_", "-")
        if problem["type"] == "extra_forbidden":
            raise WrongSettings(f"Unknown option {option}. Check its spelling.") from None
        raise WrongSettings(wrong_value(f"--{option}", problem)) from None
    except (yaml.YAMLError, OSError, ValueError, TypeError) as error:  # TypeError: the file is no mapping
        path = flags.get("config") or environ.get(f"{ENV_PREFIX}CONFIG", "")
        raise WrongSettings(f"Cannot read the settings file {path}: {' '.join(str(error).split())[:300]}") from None
    if settings.config is not None and not settings.config.is_file():
        raise WrongSettings(f"The settings file {settings.config} does not exist. Check --config.")
    return settings


def wrong_value(option: str, problem: ErrorDetails) -> str:
    """Return the sentence about an invalid value of an option."""
    fact = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if problem["type"].startswith("byte_size"):
        fact = "must be a size such as 4GiB"
    return f"Invalid value {str(problem['input'])[:80]!r} for {option}: it {fact}."
