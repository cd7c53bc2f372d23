"""The messages between the API process and the engine process."""

from typing import Literal

import msgspec

from caravan.model.sampling.sampling_params import Pooling, SamplingParams
from caravan.scheduler.config import EngineConfig, EngineLimits
from caravan.scheduler.prefix_history import MissReason
from caravan.scheduler.step_change import SequenceTable, StepChange
from caravan.scheduler.thought_budget import ThoughtBudget

FinishReason = Literal["stop", "length", "abort", "error"]
StopReason = Literal["", "repetition"]
ErrorKind = Literal["engine", "grammar"]  # "grammar": an error that the client can correct


class AdapterSource(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that requests can name."""

    name: str
    path: str  # of the folder
    digest: str  # SHA-256 of its files: blocks in the prefix cache depend on it


class StartEngine(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message to a new engine process: the model and how to load it."""

    model_path: str
    limits: EngineLimits = EngineLimits()
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["auto", "none", "native", "int8", "int4"] = "auto"
    fast_matmul: bool = False  # multiply matrices on a GPU with cuBLAS
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = "auto"
    num_threads: int | None = None  # of each rank; None: one per core
    num_ranks: int = 1  # processes that compute the model together
    num_joining_ranks: int = 0  # of these, on other hosts
    rank_address: str = ""  # HOST:PORT, at which they join
    rank_secret_path: str = ""  # of the file with the secret that they must have
    kv_spill_bytes: int = 0  # size of the spill file; 0: there is none
    kv_spill_path: str = ""  # empty: in the cache
    is_replacement: bool = False  # of an engine that has failed; it starts also if the spill file cannot be used
    weights_cache_bytes: int = 0  # limit of all files of packed weights; 0: none is read or written
    draft_model_path: str = ""  # empty: there is no draft model
    merge_lora_path: str = ""  # folder of an adapter that is merged into the weights; empty: none is
    adapters: list[AdapterSource] = []  # that requests can name
    max_lora_rank: int = 0  # of adapters that are loaded while the engine runs; 0: none are
    is_profiled: bool = False  # write the time of each part of a step to standard error


class Request(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One sequence to continue: `prompt_token_ids`, then `output_token_ids`."""

    request_id: int = 0  # set by the client of the engine
    prompt_token_ids: list[int]
    params: SamplingParams
    output_token_ids: list[int] = []  # tokens already produced, when a request is submitted again
    cache_salt: str = ""  # prefix blocks are shared only between requests of one salt
    key: str = ""  # name of the API key; the queue is fair between keys
    priority: int = 0  # among the requests of its key; lower is sooner
    urgency: int = 0  # before or after the requests of all keys; lower is sooner
    group: int = 0  # choices of one prompt, and prompts with one beginning, have the same number; 0: there is only one
    num_shared_tokens: int = 0  # length of that beginning; 0: the whole prompt
    pooling: Pooling | None = None  # the result is an embedding of the prompt; max_tokens is 0
    thought: ThoughtBudget | None = None  # None: thoughts may have any length
    adapter: str = ""  # name of the adapter; its digest is in cache_salt; empty: none
    grammar: str = ""  # the grammar of the output, in llguidance's own form; empty: none


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Abort a request."""

    request_id: int


class CheckAdapter(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Read an adapter, to see whether requests could name it; AdapterChecked follows."""

    source: AdapterSource


class SetAdapters(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The adapters that requests can name from now on, in place of those before."""

    sources: list[AdapterSource]


class TakeOver(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make a standby the engine, once its model is loaded."""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded and the pool allocated."""

    config: EngineConfig
    vocab_size: int
    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_cache_dtype: str
    weights: str  # how they are stored and multiplied, for people
    load_seconds: float
    file_type: str = ""  # of the weights in the model's files, in one word, such as Q4_K_M; empty: unknown
    draft_model: str = ""  # its size, for people; empty: there is none
    adapter: str = ""  # merged into the weights, for people; empty: none is
    fingerprint: str = ""  # changes when bits of answers may change; empty: unknown


class EngineFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine could not start; it exits after this message."""

    reason: str
    is_permanent: bool = False  # the model or its options are at fault: another try fails, too


class EngineLoaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model of a standby is loaded; the KV pool is allocated after TakeOver."""


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Log-probabilities at one output position under the model itself (no temperature, no penalty)."""

    logprob: float  # of the chosen token
    top_token_ids: list[int] = []  # the num_logprobs most probable, best first
    top_logprobs: list[float] = []


class SequenceOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The output of one step for one sequence."""

    request_id: int
    token_ids: list[int]  # new tokens, a stop token included; the last output may have none
    logprobs: list[TokenLogprobs] = []  # one per new token, if asked for
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # prompt tokens whose keys and values came from the prefix cache
    scheduled_at_seconds: float = 0.0  # time.monotonic() when it last left the queue
    error: str | None = None  # with the finish reason "error"; without text of a client or a library
    prompt_logprobs: list[TokenLogprobs] = []  # if asked for: of the next tokens of the prompt
    embedding: list[float] = []  # with the last output of a request with pooling
    error_kind: ErrorKind = "engine"
    token_logprobs: list[float] = []  # of the request's logprob_token_ids, with the step that computes the prompt's end
    stop_reason: StopReason = ""  # with the finish reason "stop"; empty: a stop token, or the end of a grammar


class SpillCounts(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What happened to the blocks of the spill file since the step before, and its size."""

    num_written: int = 0
    num_read: int = 0  # each with a checksum that fits
    num_dropped: int = 0  # not written: too many waited, or evicted before they were copied
    num_damaged: int = 0  # not used: the checksum does not fit
    used_bytes: int = 0  # of the blocks in the file
    free_bytes: int = 0  # of its other slots; both are 0 after an error


class StepStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Statistics of one step; counters hold what this step added."""

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0  # referenced by a sequence
    num_cached_blocks: int = 0  # free, but still holding a reusable prefix
    num_prefill_tokens: int = 0  # prompt tokens and tokens computed again after a preemption
    num_decode_tokens: int = 0  # draft tokens included
    num_draft_tokens: int = 0  # draft tokens computed
    num_accepted_tokens: int = 0  # draft tokens that were accepted
    num_preemptions: int = 0
    num_evicted_blocks: int = 0  # cached blocks that were allocated for something else
    prefix_cache_queries: int = 0  # tokens looked up
    prefix_cache_hits: int = 0  # tokens found
    step_seconds: float = 0.0
    num_answer_draft_tokens: int = 0  # of the draft tokens, those from earlier answers
    num_answer_accepted_tokens: int = 0
    num_model_draft_tokens: int = 0  # and those from the draft model; the rest is from the text itself
    num_model_accepted_tokens: int = 0
    draft_model_seconds: float = 0.0  # of the step
    spill: SpillCounts | None = None  # None: there is no spill file

    def draft_tokens_by_source(self) -> dict[str, tuple[int, int]]:
        """Return how many draft tokens came from where, and how many of them were accepted."""
        text = self.num_draft_tokens - self.num_answer_draft_tokens - self.num_model_draft_tokens
        accepted = self.num_accepted_tokens - self.num_answer_accepted_tokens - self.num_model_accepted_tokens
        return {
            "text": (text, accepted),
            "answers": (self.num_answer_draft_tokens, self.num_answer_accepted_tokens),
            "model": (self.num_model_draft_tokens, self.num_model_accepted_tokens),
        }


WaitReason = Literal[
    "behind others",
    "batch full",
    "token budget",
    "no free blocks",
    "prefix being computed",
    "prefix being read",
    "grammar being compiled",
    "adapter being read",
]
EventKind = Literal["wait", "read", "join", "chunk", "preempt", "abort"]


class PrefixMiss(msgspec.Struct, frozen=True, array_like=True):
    """Why the tokens of a joining sequence are in the prefix cache no further than they are."""

    reason: MissReason
    token: int  # the first one that is not in the cache; differs: the first one that differs from a cached block
    seconds: float | None = None  # evicted, differs: the age of that; not seen, other key: how far the history reaches
    num_tokens: int = 0  # that are not in the cache


class SequenceEvent(msgspec.Struct, frozen=True, array_like=True):
    """Something happened to one sequence in a step."""

    request_id: int
    kind: EventKind
    # read: found in the spill file; join: found in the prefix cache; chunk: computed in this step;
    # preempt: to be computed again
    num_tokens: int = 0
    num_computed_tokens: int = 0  # chunk: all that are computed after it
    reason: WaitReason | None = None  # wait: why it does not join; reported when it changes
    miss: PrefixMiss | None = None  # join: why no more was found


class StepOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The output of one step, in one message. Its parts are encoded without field names.

    An idle engine sends empty ones.
    """

    outputs: list[SequenceOutput]
    stats: StepStats
    events: list[SequenceEvent] = []


class BatchBegins(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The requests of the step that begins now, and of the following steps until the next such message.

    If the process crashes during a step, this message shows which requests were in it.
    """

    request_ids: list[int]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The step loop is alive, idle or in the middle of a step."""


class AdapterChecked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer to CheckAdapter."""

    name: str
    problem: str = ""  # why requests cannot name it, for the client; empty: they can


class EngineLog(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A log record of the engine process."""

    level: int  # as in `logging`
    text: str


class Subscribe(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Start or stop sending snapshots."""

    period_seconds: float  # 0: never


class SequenceSnapshot(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One sequence of a snapshot, encoded without field names."""

    request_id: int
    num_prompt_tokens: int
    num_tokens: int
    num_computed_tokens: int
    max_tokens: int
    num_blocks: int
    num_step_tokens: int = 0  # computed in the last step
    wait_reason: WaitReason | None = None


FREE, CACHED, USED, SHARED = range(4)  # state of a cell of a snapshot: the greatest of its blocks
MAX_CELLS = 2048  # of a snapshot of the pool; a larger pool has several blocks in a cell
MAX_WAITING = 100  # of a snapshot of the queue


class EngineSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Queue, batch and pool at one moment."""

    stats: StepStats
    block_size: int
    blocks_per_cell: int
    cell_states: list[int]
    running: list[SequenceSnapshot]
    waiting: list[SequenceSnapshot]  # the first of the queue
    changes: list[StepChange] = []  # of the steps since the last snapshot
    tables: list[SequenceTable] | None = None  # of the running sequences; None: not in this snapshot
    marks: list[tuple[int, str]] = []  # with tables: of their blocks


ToEngine = StartEngine | TakeOver | Request | Abort | Subscribe | CheckAdapter | SetAdapters
WhileRunning = BatchBegins | StepOutput | Heartbeat | EngineLog | EngineSnapshot | AdapterChecked
FromEngine = EngineReady | EngineFailed | EngineLoaded | WhileRunning
