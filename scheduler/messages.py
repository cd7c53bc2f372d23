"""The messages that cross the socket between the API process and the engine process."""

from typing import Literal

import msgspec

from caravan.model.sampling.sampling_params import Pooling, SamplingParams
from caravan.scheduler.config import EngineConfig, EngineLimits

FinishReason = Literal["stop", "length", "abort", "error"]
ErrorKind = Literal["engine", "grammar"]  # whose fault an error is: "grammar" is one that the client can correct


class StartEngine(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First frame to a new engine process: what to load and how."""

    model_path: str
    limits: EngineLimits = EngineLimits()
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["auto", "none", "int8", "int4"] = "auto"
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = "auto"
    num_threads: int | None = None  # None: one per core
    is_profiled: bool = False  # write where the time of its steps goes to standard error


class Request(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One sequence to continue: `prompt_token_ids`, then what was already produced of it."""

    request_id: int = 0  # given by the client of the engine
    prompt_token_ids: list[int]
    params: SamplingParams
    output_token_ids: list[int] = []  # tokens already produced, when a request is submitted again
    cache_salt: str = ""  # prefix blocks are shared only between requests of one salt
    key: str = ""  # the name of whoever asks; the queue shares the engine fairly between names
    priority: int = 0  # among the requests of its key; lower is sooner
    urgency: int = 0  # before or behind the requests of all keys; lower is sooner
    group: int = 0  # choices of one prompt have the same number; 0: there is only one
    pooling: Pooling | None = None  # what is wanted is one vector for the prompt; nothing is drawn: max_tokens is 0
    grammar: str = ""  # in llguidance's own form: which texts the output may be; empty: any


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The client no longer wants this request."""

    request_id: int


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded and the pool allocated."""

    config: EngineConfig
    vocab_size: int
    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_cache_dtype: str
    weights: str  # in which numbers they are and are multiplied, for people
    load_seconds: float


class EngineFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine could not start; it exits after this frame."""

    reason: str


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Log-probabilities at one output position under the model itself (no temperature, no penalty)."""

    logprob: float  # of the chosen token
    top_token_ids: list[int] = []  # the num_logprobs most probable, best first
    top_logprobs: list[float] = []


class SequenceOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What one step did for one sequence."""

    request_id: int
    token_ids: list[int]  # new tokens, a stop token included; may be empty at the end
    logprobs: list[TokenLogprobs] = []  # one per new token, if asked for
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # prompt tokens whose keys and values came from the prefix cache
    scheduled_at_seconds: float = 0.0  # time.monotonic() when it last left the queue
    error: str | None = None  # with the finish reason "error": words of ours, without text of a client or a library
    prompt_logprobs: list[TokenLogprobs] = []  # if asked for: those of the prompt's next tokens
    embedding: list[float] = []  # with the end of a request with pooling
    error_kind: ErrorKind = "engine"


class StepStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Plain numbers about one step; counters are what this step added."""

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0  # referenced by a sequence
    num_cached_blocks: int = 0  # free, but still holding a reusable prefix
    num_prefill_tokens: int = 0  # prompt tokens and tokens computed again after a preemption
    num_decode_tokens: int = 0  # guessed ones included
    num_draft_tokens: int = 0  # tokens guessed
    num_accepted_tokens: int = 0  # guessed tokens that were right
    num_preemptions: int = 0
    num_evicted_blocks: int = 0  # cached ones that were needed for something else
    prefix_cache_queries: int = 0  # tokens looked up
    prefix_cache_hits: int = 0  # tokens found
    step_seconds: float = 0.0


WaitReason = Literal[
    "behind others", "batch full", "token budget", "no free blocks", "prefix being computed", "grammar being compiled"
]
EventKind = Literal["wait", "join", "chunk", "preempt", "abort"]


class SequenceEvent(msgspec.Struct, frozen=True, array_like=True):
    """Something happened to one sequence in a step."""

    request_id: int
    kind: EventKind
    num_tokens: int = 0  # join: found in the prefix cache; chunk: computed in this step; preempt: to be computed again
    num_computed_tokens: int = 0  # chunk: all that are computed after it
    reason: WaitReason | None = None  # wait: why it does not join; told once, until it is another


class StepOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Everything one step produced: one frame per step, not per token. What it is made of goes without field names.

    An idle engine sends empty ones.
    """

    outputs: list[SequenceOutput]
    stats: StepStats
    events: list[SequenceEvent] = []


class BatchBegins(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The step that begins now works on these requests, and so do those after it until another such frame.

    If the process ends in the middle of a step, this says who was there.
    """

    request_ids: list[int]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The step loop is alive, idle or in the middle of a step."""


class EngineLog(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the engine process logs."""

    level: int  # as in `logging`
    text: str


class Subscribe(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Somebody looks, or nobody does any more: how often a view is wanted."""

    period_seconds: float  # 0: never


class SequenceSnapshot(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One sequence of a view. Its fields go by their order."""

    request_id: int
    num_prompt_tokens: int
    num_tokens: int
    num_computed_tokens: int
    max_tokens: int
    num_blocks: int
    num_step_tokens: int = 0  # computed in the last step
    wait_reason: WaitReason | None = None


class EngineSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Queue, batch and pool at one moment."""

    stats: StepStats
    block_size: int
    blocks_per_cell: int
    cell_states: list[int]  # scheduler/snapshot.py says which there are
    cell_owners: list[int]  # request ids; 0: none
    running: list[SequenceSnapshot]
    waiting: list[SequenceSnapshot]  # the first of the queue


ToEngine = StartEngine | Request | Abort | Subscribe
WhileRunning = BatchBegins | StepOutput | Heartbeat | EngineLog | EngineSnapshot
FromEngine = EngineReady | EngineFailed | WhileRunning
