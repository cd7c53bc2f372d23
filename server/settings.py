"""Settings: every option of `caravan serve`, as a flag, a CARAVAN_* variable and a key of the YAML file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from caravan.scheduler.config import EngineLimits
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank_secret import read_secret
from caravan.scheduler.rank_socket import host_and_port
from caravan.server.adapter_settings import AdapterSettings
from caravan.server.batches.settings import BatchSettings
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.http.api_keys import ApiKeys, WrongKeys, load_keys
from caravan.server.http.host_names import is_loopback
from caravan.server.observe.settings import LogSettings
from caravan.server.option_groups import (
    DEMO_POOL_TOKENS,
    LimitSettings,
    MemorySettings,
    ModelSettings,
    NetworkSettings,
    SecuritySettings,
)
from caravan.server.resumption.settings import ResumeSettings
from caravan.server.settings_file import FileOption, WrongSettingsFile, near_name, read_settings_file

ENV_PREFIX = "CARAVAN_"
ENGINE_OPTIONS = frozenset(  # of the engine process alone
    {
        *("device", "dtype", "quantization", "fast_matmul", "speculation", "draft_model", "merge_lora", "num_threads"),
        *("kv_cache_memory", "kv_cache_dtype", "block_size", "kv_spill", "kv_spill_path", "weights_cache_size"),
        *("max_model_len", "max_num_seqs", "max_batch_tokens", "max_inter_token_latency", "standby", "profile"),
        "demo",
    }
)


class WrongSettings(ValueError):
    """An invalid option; the text is one line that names it."""


class Settings(
    BaseSettings,
    LogSettings,
    SecuritySettings,
    NetworkSettings,
    BatchSettings,
    ResumeSettings,
    LimitSettings,
    MemorySettings,
    AdapterSettings,
    ModelSettings,
):
    """Every option. A flag wins over a variable, a variable over the file, the file over the default."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    config: Path | None = Field(
        None,
        description="YAML file with any of these options, such as `max_num_seqs: 32`. `caravan config --example` "
        "prints one.",
    )

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
        options = {name: option.value for name, option in _options_in(file).items()}
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=options)

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

    def has_lessons(self, *, has_keys: bool) -> bool:
        """Return whether requests for lessons are answered: by default on this machine only, without API keys."""
        if self.learn == "auto":
            return not has_keys and (self.uds is not None or is_loopback(self.host))
        return self.learn == "on"

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
        if found is None and not self.insecure and self.uds is None and not is_loopback(self.host):
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

    def check_uds(self) -> None:
        """Raise WrongSettings for a Unix socket beside an address."""
        given = [f"--{name}" for name in ("host", "port") if name in self.model_fields_set]
        if self.uds is not None and given:
            raise WrongSettings(f"--uds cannot be combined with {' and '.join(given)}. Set one of them.")

    def check_draft_model(self) -> None:
        """Raise WrongSettings for a draft model without speculation."""
        if self.draft_model is not None and self.speculation == "off":
            raise WrongSettings("--draft-model needs --speculation auto or on. Remove one of the options.")

    def check_kv_spill(self) -> None:
        """Raise WrongSettings for the path of a spill file without its size."""
        if self.kv_spill_path is not None and self.kv_spill is None:
            raise WrongSettings("--kv-spill-path needs --kv-spill, the size of the file. Set both or neither.")

    def check_tensor_parallel(self) -> None:
        """Raise WrongSettings for options that several processes for one model cannot have, or need together."""
        self._check_remote_ranks()
        if self.tensor_parallel == 1:
            return
        for name, is_set in (("--standby", self.standby), ("--kv-spill", self.kv_spill is not None)):
            if is_set:
                raise WrongSettings(f"{name} cannot be combined with --tensor-parallel. Remove one of the options.")

    def _check_remote_ranks(self) -> None:
        has_all = self.rank_address is not None and self.rank_secret_file is not None
        if not self.remote_ranks:
            if self.rank_address is not None or self.rank_secret_file is not None:
                raise WrongSettings("--rank-address and --rank-secret-file need --remote-ranks. Set all or none.")
            return
        if not has_all:
            raise WrongSettings("--remote-ranks needs --rank-address and --rank-secret-file. Set all or none.")
        if self.remote_ranks >= self.tensor_parallel:
            raise WrongSettings(
                f"--remote-ranks {self.remote_ranks} must be less than --tensor-parallel {self.tensor_parallel}: the "
                "first process is the engine of this server."
            )
        for name, option in (("--models", self.models), ("--merge-lora", self.merge_lora)):
            if option is not None:
                raise WrongSettings(f"--remote-ranks cannot be combined with {name}. Remove one of the options.")
        try:
            host_and_port(str(self.rank_address))
        except ValueError as error:
            raise WrongSettings(f"--rank-address: {error}") from None
        try:
            read_secret(Path(str(self.rank_secret_file)))
        except ValueError as error:
            raise WrongSettings(f"--rank-secret-file: {error}") from None

    def check_models(self) -> None:
        """Raise WrongSettings for a budget without models that share it, or one spill file for several models."""
        if self.models is None and self.models_memory is not None:
            raise WrongSettings("--models-memory needs --models. Set both or neither.")
        if self.models is not None and self.kv_spill_path is not None:
            raise WrongSettings(
                "--kv-spill-path is the file of one model and cannot be combined with --models. Remove it: "
                "each model then has a file of its own in the cache."
            )

    def check_engines(self) -> None:
        """Raise WrongSettings for options of an engine that the server does not start."""
        if self.engines is None:
            return
        if not re.fullmatch(r"ray://[\w.-]+", self.engines):
            raise WrongSettings(
                f"--engines {self.engines} is not ray:// and the name of an application, such as ray://caravan. The "
                "variable RAY_ADDRESS has the address of the cluster."
            )
        if names := sorted(self.model_fields_set & (ENGINE_OPTIONS | {"models", "models_memory", "sleep_after"})):
            raise WrongSettings(
                f"--{names[0].replace('_', '-')} cannot be combined with --engines. Set it in the file of "
                "`caravan deploy`, or leave it out."
            )

    def check_demo(self) -> None:
        """Raise WrongSettings for a demo with a pool of another size, or of several models."""
        if not self.demo:
            return
        for name, value in (("--kv-cache-memory", self.kv_cache_memory), ("--models", self.models)):
            if value is not None:
                raise WrongSettings(f"--demo cannot be combined with {name}. Remove one of the options.")
        if self.max_model_len is not None and self.max_model_len > DEMO_POOL_TOKENS:
            raise WrongSettings(f"--demo has room for {DEMO_POOL_TOKENS:,} tokens. Lower --max-model-len.")

    def start_engine(
        self, model_path: Path, draft_model_path: Path | None = None, *, is_shared: bool = False
    ) -> StartEngine:
        """Return the models that the engine loads, and its options; `is_shared` if several API keys use it."""
        return StartEngine(
            model_path=str(model_path),
            draft_model_path=str(draft_model_path or ""),
            merge_lora_path="" if self.merge_lora is None else str(self.merge_lora.absolute()),
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            fast_matmul=self.fast_matmul,
            kv_cache_dtype=self.kv_cache_dtype,
            num_threads=self.num_threads,
            num_ranks=self.tensor_parallel,
            num_joining_ranks=self.remote_ranks,
            rank_address=self.rank_address or "",
            rank_secret_path=str(self.rank_secret_file or ""),
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
                max_pool_tokens=DEMO_POOL_TOKENS if self.demo else None,
            ),
        )


def replica_settings(args: Mapping[str, Any]) -> Settings:
    """Return the settings of an engine that is a replica; raises WrongSettings for an option of something else."""
    allowed = ENGINE_OPTIONS - {"standby"} | {"model", "engine_timeout"}
    if unknown := sorted(args.keys() - allowed):
        known = ", ".join(sorted(allowed))
        raise WrongSettings(f"{unknown[0]} is no option of a replica. Its options are {known}.")
    settings = load_settings(args, {})
    settings.check_draft_model()
    settings.check_kv_spill()
    settings.check_demo()
    return settings


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that result from the given flags, the variables and the file; raises WrongSettings."""
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for variable in environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            hint = near_name(variable.upper(), known) or "`caravan serve --help` lists the variables."
            raise WrongSettings(f"Unknown variable {variable}. {hint}")
    try:
        return Settings(**flags)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise WrongSettings(f"Unknown option {name.replace('_', '-')}. Check its spelling.") from None
        raise WrongSettings(wrong_value(_option_with_source(name, flags, environ), problem)) from None
    except WrongSettingsFile as error:
        raise WrongSettings(str(error)) from None


def settings_sources(settings: Settings, flags: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Return where each option that is set comes from: its flag, its variable, or its place in the file."""
    in_file = _options_in(settings.config)
    return {name: _source(name, flags, environ, in_file) for name in settings.model_fields_set}


def _options_in(file: str | Path | None) -> dict[str, FileOption]:
    return read_settings_file(Path(file), Settings.model_fields.keys() - {"config"}) if file else {}


def _source(name: str, flags: Mapping[str, Any], environ: Mapping[str, str], in_file: Mapping[str, FileOption]) -> str:
    """Return what sets an option: the strongest of its flag, its variable and its place in the file."""
    flag = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
    variable = ENV_PREFIX + name.upper()
    if name not in flags and any(one.upper() == variable and value for one, value in environ.items()):
        return variable
    return in_file[name].place if name not in flags and name in in_file else flag


def _option_with_source(name: str, flags: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the flag of an option whose value is wrong, with the variable or the place in the file that set it."""
    flag = f"--{name.replace('_', '-')}"
    file = flags.get("config") or environ.get(f"{ENV_PREFIX}CONFIG")
    source = _source(name, flags, environ, _options_in(file))
    return flag if source in (flag, "MODEL") else f"{flag} ({source})"


def wrong_value(option: str, problem: ErrorDetails) -> str:
    """Return the sentence about an invalid value of an option."""
    fact = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if problem["type"].startswith("byte_size"):
        fact = "must be a size such as 4GiB"
    return f"Invalid value {str(problem['input'])[:80]!r} for {option}: it {fact}."
