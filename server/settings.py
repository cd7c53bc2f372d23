"""Settings: every option of `caravan serve`, once: a flag, a CARAVAN_* variable and a key of the YAML file alike."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from caravan.download.resolve import DEFAULT_MODEL
from caravan.scheduler.config import EngineLimits, Speculation
from caravan.scheduler.messages import StartEngine
from caravan.server.api_keys import ApiKeys, WrongKeys, load_keys
from caravan.server.body_memory import DEFAULT_BYTES
from caravan.server.client_address import networks
from caravan.server.host_names import allowed_origins, is_loopback
from caravan.server.request_limits import QueueLimits

ENV_PREFIX = "CARAVAN_"


def _seconds(value: object) -> object:
    """Return a duration such as 100ms, 0.1s or 0.1 in seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|)", value.strip())
    if match is None:
        raise ValueError("must be a duration such as 100ms or 0.1s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def _origins(value: str | None) -> str | None:
    allowed_origins(value)
    return value


def _networks(value: str | None) -> str | None:
    try:
        networks(value)
    except ValueError:
        raise ValueError("must be addresses or networks such as 10.0.0.0/8, with commas between") from None
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Origins = Annotated[str | None, AfterValidator(_origins)]
Networks = Annotated[str | None, AfterValidator(_networks)]


class WrongSettings(ValueError):
    """An option that cannot be; the text is one line that names it."""


class Settings(BaseSettings):
    """A flag wins over a variable, a variable over the file, the file over the default."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    model: str = Field(DEFAULT_MODEL, description="A .gguf or .bin file, a folder, a hub id org/name, or smollm2.")
    config: Path | None = Field(None, description="A YAML file with any of these options.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is all of them.")
    allowed_hosts: str | None = Field(
        None,
        description="Host names to answer to, with commas between; `*.name` and `*` are known. "
        "Default: those of this machine if --host is one of them, else any.",
    )
    allowed_origins: Origins = Field(
        None,
        description="Origins whose pages may use the API in a browser (CORS), such as https://app.example.org, "
        "with commas between; * is any. Default: none.",
    )
    trusted_proxies: Networks = Field(
        None,
        description="Addresses or networks of proxies whose X-Forwarded-For names the client in the log, "
        "with commas between. Default: none.",
    )
    insecure: bool = Field(False, description="Serve other machines without a key: who reaches the port may ask.")
    tls_certificate: Path | None = Field(None, description="A PEM file with the certificate chain, for HTTPS.")
    tls_key: Path | None = Field(None, description="A PEM file with the key of --tls-certificate.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    served_model_name: str | None = Field(
        None, description="Names requests use for the model, with commas between; the first one is shown."
    )
    api_key: str | None = Field(
        None, repr=False, description="Key that requests must bring; several with commas between. Default: none needed."
    )
    api_key_file: Path | None = Field(
        None,
        description="A file of lines `name: key`, one for each user. Attributes can follow the key: `, scrape` lets it "
        "read /metrics, `, min-priority=-5` lets its negative priorities count before other keys.",
    )
    chat_template: Path | None = Field(None, description="A Jinja file to use instead of the model's chat template.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the model is computed; auto is a GPU (cuda) if PyTorch can use one."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of activations; auto is bfloat16 where that is fast."
    )
    quantization: Literal["auto", "none", "int8", "int4"] = Field(
        "auto",
        description="int8 multiplies in 8 bits; int4 stores weights in 4 and multiplies in bfloat16; none is bfloat16; "
        "auto is int4 for files in Q4_0, Q4_1, Q8_0, whose weights it takes as they are, else none.",
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = Field(
        "auto", description="Of keys and values; int8 takes about half of the room; auto is the dtype."
    )
    kv_cache_memory: ByteSize | None = Field(
        None, ge=1, description="Size of the KV pool, such as 4GiB. Default: half of the memory free after loading."
    )
    max_model_len: int | None = Field(
        None, ge=2, description="Longest prompt and answer together, in tokens. Default: the model's, up to 8192."
    )
    max_num_seqs: int = Field(64, ge=1, description="Sequences that run at once.")
    max_batch_tokens: int = Field(512, ge=1, description="Tokens computed in one step, over all sequences.")
    block_size: int = Field(16, ge=1, description="Tokens in a block of the KV pool.")
    speculation: Speculation = Field(
        "auto", description="auto guesses tokens from the text so far where that pays; no answer changes by it."
    )
    num_threads: int | None = Field(None, ge=1, description="Threads that compute. Default: one per core.")
    max_queued_requests: int = Field(
        512, ge=0, description="Sequences that wait for their turn; more are refused (429)."
    )
    max_queued_tokens: int = Field(
        1_000_000, ge=0, description="Tokens of prompts and answers that wait; what goes beyond is refused (429)."
    )
    max_body_memory: ByteSize = Field(
        ByteSize(DEFAULT_BYTES),
        ge=1,
        description="Memory for the bodies of all requests; a long body that finds no room is refused (429).",
    )
    max_wait: float | None = Field(
        None, gt=0, description="Seconds a request may have to wait; one that would wait longer is refused (429)."
    )
    max_inter_token_latency: Seconds | None = Field(
        None,
        description="Longest pause of running streams while prompts are computed, such as 100ms. "
        "Default: about 150ms with several API keys at work, 500ms with one of several, else none.",
    )
    keep_alive_timeout: int = Field(
        75,
        ge=1,
        description="Seconds before an idle connection is closed; must be longer than a proxy keeps idle ones.",
    )
    drain_timeout: float = Field(30.0, ge=0, description="Seconds that accepted requests get to end after SIGTERM.")
    engine_timeout: float = Field(
        10.0, ge=1, description="Seconds of silence after which the engine hangs and is replaced."
    )
    access_log: bool = Field(
        False, description="Log every exchange, health checks and metrics, too, not only what is posted."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Of the log on standard error; auto is text at a terminal, else JSON."
    )
    profile: bool = Field(False, description="Print every few seconds of work where the time of a step goes.")

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
        """The names requests use for the model, the one that is shown first."""
        if self.served_model_name is None:
            path = Path(self.model)
            if path.is_dir():
                return (path.resolve().name,)
            return (path.stem if path.suffix.lower() in (".gguf", ".bin") else self.model,)
        return tuple(filter(None, map(str.strip, self.served_model_name.split(",")))) or (self.model,)

    @property
    def queue_limits(self) -> QueueLimits:
        """How much may wait."""
        return QueueLimits(self.max_queued_requests, self.max_queued_tokens, self.max_wait)

    def load_keys(self) -> ApiKeys | None:
        """Return the keys that requests must bring, None if they need none; raises WrongSettings."""
        keys = [key.strip() for key in (self.api_key or "").split(",") if key.strip()]
        try:
            found = load_keys(keys, self.api_key_file)
        except (WrongKeys, OSError, UnicodeDecodeError) as error:
            raise WrongSettings(f"--api-key, --api-key-file: {error}") from None
        if found is None and not self.insecure and not is_loopback(self.host):
            raise WrongSettings(
                f"--host {self.host} lets other machines in, and there is no key. Set --api-key or --api-key-file, "
                "or --insecure if anybody may ask."
            )
        return found

    def check_tls(self) -> None:
        """Raise WrongSettings unless there are both a certificate and its key, or neither."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise WrongSettings("--tls-certificate and --tls-key belong together; set both or none.")
        for name, file in (("--tls-certificate", self.tls_certificate), ("--tls-key", self.tls_key)):
            if file is not None and not file.is_file():
                raise WrongSettings(f"{name}: there is no file {file}.")

    def start_engine(self, model_path: Path, *, is_shared: bool = False) -> StartEngine:
        """Return what the engine is told to load, and how; several API keys share it."""
        return StartEngine(
            model_path=str(model_path),
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            num_threads=self.num_threads,
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
            ),
        )


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that result from the given flags, the variables and the file; raises WrongSettings."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for variable in environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            raise WrongSettings(f"The variable {variable} is no option. There are: {', '.join(sorted(known))}.")
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = ".".join(map(str, problem["loc"])).replace("_", "-")
        if problem["type"] == "extra_forbidden":
            raise WrongSettings(f"{option} is no option of this server; check its spelling.") from None
        raise WrongSettings(_wrong_value(f"--{option}", problem)) from None
    except (yaml.YAMLError, OSError, ValueError, TypeError) as error:  # TypeError: the file is no mapping
        raise WrongSettings(f"The settings file cannot be read: {' '.join(str(error).split())[:300]}") from None
    if settings.config is not None and not settings.config.is_file():
        raise WrongSettings(f"There is no settings file {settings.config}.")
    return settings


class EngineSettings(Settings):
    """The settings of an engine that a program uses by itself; variables and files are those of a server."""

    model_config = SettingsConfigDict(env_prefix="=")  # which no name of a variable has


def engine_settings(options: Mapping[str, Any]) -> EngineSettings:
    """Return the settings that result from the options of a program alone; raises WrongSettings."""
    try:
        return EngineSettings(**options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise WrongSettings(_wrong_value(f"`{problem['loc'][0]}`", problem)) from None


def _wrong_value(option: str, problem: ErrorDetails) -> str:
    """Return the sentence about the value of an option that cannot be."""
    fact = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{option} is {str(problem['input'])[:80]!r}: it {fact}."
