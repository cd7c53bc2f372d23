"""Settings: every option of `caravan serve`, as a flag, a CARAVAN_* variable and a key of the YAML file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from caravan.download.resolve import DEFAULT_MODEL
from caravan.scheduler.config import EngineLimits, Speculation
from caravan.scheduler.messages import StartEngine
from caravan.server.batches.settings import BatchSettings
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.http.api_keys import ApiKeys, WrongKeys, load_keys
from caravan.server.http.body_memory import DEFAULT_BYTES
from caravan.server.http.host_names import is_loopback
from caravan.server.http.option_types import Networks, Origins, Seconds

ENV_PREFIX = "CARAVAN_"


class WrongSettings(ValueError):
    """An invalid option; the text is one line that names it."""


class ModelSettings(BaseModel):
    """Model."""

    model: str = Field(
        DEFAULT_MODEL,
        description="A .gguf or llama2.c .bin file, a folder, a Hugging Face id such as org/name or "
        f"org/name:Q4_K_M, or {DEFAULT_MODEL}.",
    )
    served_model_name: str | None = Field(
        None,
        description="Model names accepted in requests, separated by commas. Responses use the first. "
        "Default: derived from MODEL.",
    )
    chat_template: Path | None = Field(None, description="Jinja file that replaces the model's chat template.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device that runs the model. auto: a GPU if PyTorch can use one, otherwise the CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Data type of activations. auto: bfloat16 where it is fast, otherwise float32."
    )
    quantization: Literal["auto", "none", "native", "int8", "int4"] = Field(
        "auto",
        description="Weight quantization. none: bfloat16. native: weights as the files have them, 8-bit products. "
        "int8: 8-bit weights and products. int4: 4-bit weights, bfloat16 products. auto: native for files with "
        "quantized weights, otherwise none.",
    )
    fast_matmul: bool = Field(
        False,
        description="Multiply matrices on a GPU with cuBLAS: faster prefill, but an answer can depend on the other "
        "requests of its batch.",
    )
    speculation: Speculation = Field(
        "auto",
        description="Speculative decoding with draft tokens from the text itself, from earlier answers of the same API "
        "key and from the draft model. auto: where it is faster, on a GPU only with a draft model. on: where it is "
        "faster, on a GPU too. The output does not change.",
    )
    draft_model: str | None = Field(
        None,
        description="A smaller model with the same vocabulary, which proposes tokens where that is faster. "
        "Default: none.",
    )
    num_threads: int | None = Field(None, ge=1, description="Number of compute threads. Default: one per core.")

    @field_validator("speculation", mode="before")
    @classmethod
    def _read_truth_value(cls, value: object) -> object:
        """Return the word that YAML reads as a truth value."""
        return ("on" if value else "off") if isinstance(value, bool) else value


class MemorySettings(BaseModel):
    """Memory."""

    kv_cache_memory: ByteSize | None = Field(
        None,
        ge=1,
        description="KV cache size, such as 4GiB. Default: half of the memory free after loading, on a GPU 90 % of "
        "it less what a step needs.",
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = Field(
        "auto", description="KV cache data type. int8 takes about half of the memory. auto: the same as --dtype."
    )
    block_size: int = Field(16, ge=1, description="Number of tokens in a KV cache block.")
    weights_cache_size: ByteSize = Field(
        ByteSize(16 * 2**30), ge=0, description="Disk space for packed weights, for faster starts. 0: none are kept."
    )
    max_body_memory: ByteSize = Field(
        ByteSize(DEFAULT_BYTES),
        ge=1,
        description="Memory for the bodies of all requests. A long body that does not fit gets status 429.",
    )


class LimitSettings(BaseModel):
    """Limits."""

    max_model_len: int | None = Field(
        None,
        ge=2,
        description="Maximum length of prompt and output together, in tokens. Default: the model's, up to 8192.",
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Maximum number of sequences in a batch. Default: 64, on a GPU 256."
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum number of tokens in a step, over all sequences. Default: 512, on a GPU 8192.",
    )
    max_queued_requests: int = Field(
        512, ge=0, description="Maximum number of waiting sequences. Requests over the limit get status 429."
    )
    max_queued_tokens: int = Field(
        1_000_000,
        ge=0,
        description="Maximum number of prompt and output tokens of all waiting sequences. Requests over the limit get "
        "status 429.",
    )
    max_wait: float | None = Field(
        None,
        gt=0,
        description="Maximum expected time in the queue, in seconds. Requests over the limit get status 429. "
        "Default: no limit.",
    )
    max_inter_token_latency: Seconds | None = Field(
        None,
        description="Longest pause of running streams while prompts are computed, such as 100ms. "
        "Default: about 150ms with several active API keys, 500ms with one active of several, otherwise no limit.",
    )
    drain_timeout: float = Field(
        30.0, ge=0, description="Time for accepted requests to finish after SIGTERM, in seconds."
    )
    engine_timeout: float = Field(
        10.0, ge=1, description="Restart the engine after this many seconds without a heartbeat."
    )
    standby: bool = Field(
        False, description="Load the model a second time, in a process that takes over when the engine fails."
    )


class NetworkSettings(BaseModel):
    """Network."""

    host: str = Field(
        "127.0.0.1", description="Address to listen on. 0.0.0.0 means all; it needs an API key or --insecure."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on. 0 means a free one.")
    keep_alive_timeout: int = Field(
        75,
        ge=1,
        description="Time after which an idle connection is closed, in seconds. Must be longer than the idle timeout "
        "of a proxy in front.",
    )
    trusted_proxies: Networks = Field(
        None,
        description="Addresses or networks of proxies, separated by commas, whose X-Forwarded-For header names the "
        "client in the log. Default: none.",
    )


class SecuritySettings(BaseModel):
    """Security."""

    api_key: str | None = Field(
        None,
        repr=False,
        description="API keys, separated by commas; requests must send one. Prefer the variable: other users of the "
        "machine can see options. Default: no key needed.",
    )
    api_key_file: Path | None = Field(
        None,
        description="File with a line `name: key` for each user. Attributes can follow the key: `, scrape` permits "
        "/metrics; `, min-priority=-5` serves requests of negative priority, down to -5, before those of other keys.",
    )
    insecure: bool = Field(False, description="Allow other machines to connect without an API key.")
    allowed_hosts: str | None = Field(
        None,
        description="Accepted host names, separated by commas; `*.name` and `*` are wildcards. "
        "Default: the names of this machine if --host is one of them, otherwise any.",
    )
    allowed_origins: Origins = Field(
        None,
        description="Origins whose pages may use the API in a browser (CORS), separated by commas, such as "
        "https://app.example.org; `*` for any. Default: none.",
    )
    tls_certificate: Path | None = Field(None, description="PEM file with the certificate chain. Enables HTTPS.")
    tls_key: Path | None = Field(None, description="PEM file with the private key of the certificate.")


class LogSettings(BaseModel):
    """Logs."""

    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Format of the log on standard error. auto: text in a terminal, otherwise JSON."
    )
    access_log: bool = Field(
        False, description="Log every request, including health checks and metrics, not only POST requests."
    )
    profile: bool = Field(False, description="Print how the time of engine steps is spent, every few seconds.")


GROUPS = (
    ModelSettings,
    MemorySettings,
    LimitSettings,
    BatchSettings,
    NetworkSettings,
    SecuritySettings,
    LogSettings,
)


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
