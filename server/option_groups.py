"""Groups of options: each class is a section of `caravan serve --help` and of docs/options.md."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ByteSize, Field, field_validator
from pydantic_core import PydanticCustomError

from caravan.download.resolve import DEFAULT_MODEL
from caravan.scheduler.config import Speculation
from caravan.server.adapter_settings import AdapterSettings
from caravan.server.batches.settings import BatchSettings
from caravan.server.http.body_memory import DEFAULT_BYTES
from caravan.server.http.option_types import Networks, Origins, RootPath, Seconds
from caravan.server.observe.settings import LogSettings
from caravan.server.resumption.settings import ResumeSettings

DEMO_POOL_TOKENS = 1024


class ModelSettings(BaseModel):
    """Model."""

    model: str = Field(
        DEFAULT_MODEL,
        description="A .gguf or llama2.c .bin file, a folder, a Hugging Face id such as org/name or "
        f"org/name:Q4_K_M, or {DEFAULT_MODEL}.",
    )
    models: Path | None = Field(
        None,
        description="YAML file with a list of models to serve instead of MODEL, each with options of its own. They are "
        "loaded when they get a request.",
    )
    engines: str | None = Field(
        None,
        description="Application of Ray Serve whose replicas run MODEL, such as ray://caravan, instead of an engine "
        "process of this server. Needs the extra `ray`.",
    )
    served_model_name: str | None = Field(
        None,
        description="Model names accepted in requests, separated by commas. Responses use the first. "
        "Default: derived from MODEL.",
    )
    chat_template: Path | None = Field(None, description="Jinja file that replaces the model's chat template.")
    chat_template_kwargs: str | None = Field(
        None,
        description='Variables of the chat template, as JSON such as {"enable_thinking": false}. Requests can override '
        "them. Default: none.",
    )
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
        "quantized weights, otherwise none. On a GPU all products are in bfloat16.",
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
    merge_lora: Path | None = Field(
        None,
        description="Folder of a LoRA adapter, as PEFT writes it, which is merged into the weights while they are "
        "loaded. Default: none.",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of processes that compute the model together, each with its part of the weights and of the "
        "KV cache. For machines with several NUMA nodes; with one node it is slower. The output does not change.",
    )
    remote_ranks: int = Field(
        0,
        ge=0,
        le=63,
        description="Number of the processes of --tensor-parallel that join from other hosts, where `caravan rank` "
        "starts them. Needs --rank-address and --rank-secret-file.",
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        description="Number of compute threads, of each process if --tensor-parallel is set. Default: one per core, "
        "divided between the processes.",
    )

    @property
    def template_variables(self) -> dict[str, str | float | bool | None]:
        """Variables of the chat template."""
        variables: dict[str, str | float | bool | None] = json.loads(self.chat_template_kwargs or "{}")
        return variables

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _check_template_kwargs(cls, value: object) -> object:
        """Return variables as JSON; a file can have them as a mapping."""
        if value is None:
            return None
        # Imported here: most commands start without the web framework, which this needs for its errors.
        from caravan.server.openai.protocol.thinking_fields import template_kwargs

        try:
            return json.dumps(template_kwargs(json.loads(value) if isinstance(value, str) else value))
        except PydanticCustomError:
            raise
        except ValueError:
            raise ValueError('must be JSON such as {"enable_thinking": false}') from None

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
        description="KV cache size, such as 4GiB. Default: half of the memory free after loading, but no more than "
        "twice what --max-num-seqs requests of --max-model-len tokens take; on a GPU 90 % of the free memory less what "
        "a step needs; of several models half of an equal share of their memory.",
    )
    demo: bool = Field(
        False,
        description=f"A KV cache of {DEMO_POOL_TOKENS:,} tokens, which a few requests fill, so that paging can be "
        "watched.",
    )
    models_memory: ByteSize | None = Field(
        None,
        ge=1,
        description="Memory for all models of --models that are loaded at the same time. Default: 80 % of the free "
        "memory, on a GPU 90 %.",
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = Field(
        "auto", description="KV cache data type. int8 takes about half of the memory. auto: the same as --dtype."
    )
    block_size: int = Field(16, ge=1, description="Number of tokens in a KV cache block.")
    kv_spill: ByteSize | None = Field(
        None,
        ge=1,
        description="Size of a file that keeps cached blocks when the engine ends, such as 4GiB. It has users' text in "
        "another form. Default: none.",
    )
    kv_spill_path: Path | None = Field(
        None, description="The file of --kv-spill. Default: one in the cache for each model."
    )
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
        description="Maximum expected time in the queue, in seconds, without the load of a model. Requests over the "
        "limit get status 429. Default: no limit.",
    )
    max_inter_token_latency: Seconds | None = Field(
        None,
        description="Longest pause of running streams while prompts are computed, such as 100ms. "
        "Default: about 150ms with several active API keys, 500ms with one active of several, otherwise no limit.",
    )
    sleep_after: Seconds | None = Field(
        None,
        description="Time without requests after which the engine process ends, such as 10m. The next request starts "
        "it again. Default: never.",
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
    uds: Path | None = Field(
        None,
        description="Unix socket to listen on instead of --host and --port. Only this user can connect to it. "
        "Default: none.",
    )
    root_path: RootPath = Field(
        "", description="Prefix of all paths, such as /llm, whether a proxy in front removes it or not. Default: none."
    )
    rank_address: str | None = Field(
        None,
        description="HOST:PORT at which processes of --remote-ranks join, while an engine starts. Keep it in a network "
        "of its own: what they send is not encrypted. Default: none.",
    )
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
        "machine can see options. With --batch-folder one at most. Default: no key needed.",
    )
    api_key_file: Path | None = Field(
        None,
        description="File with a line `name: key` for each user. Attributes can follow the key: `, scrape` permits "
        "/metrics; `, adapters` permits what --lora-folder is for; `, min-priority=-5` serves requests of negative "
        "priority, down to -5, before those of other keys.",
    )
    rank_secret_file: Path | None = Field(
        None,
        description="File with a secret of at least 16 bytes, which processes of --remote-ranks must have. "
        "Default: none.",
    )
    learn: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Lessons of the page that compute: traces of the model, which take the memory of its weights in "
        "float32 for a while. auto: on without API keys, for clients on this machine.",
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


GROUPS = (
    ModelSettings,
    AdapterSettings,
    MemorySettings,
    LimitSettings,
    BatchSettings,
    ResumeSettings,
    NetworkSettings,
    SecuritySettings,
    LogSettings,
)
