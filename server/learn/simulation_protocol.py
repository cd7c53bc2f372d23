"""The requests and responses of POST /v1/learn/simulate."""

from pydantic import Field

from caravan.server.openai.protocol.response_model import ResponseModel
from caravan.server.openai.protocol.strict_model import StrictModel

MAX_REQUESTS = 32
MAX_STEPS = 256


class SimulatedArrival(StrictModel):
    """A request of the simulation."""

    prompt: list[int] = Field(min_length=1, max_length=512, fail_fast=True, description="Token ids of any numbers.")
    max_tokens: int = Field(ge=1, le=200, description="Tokens that it generates.")
    step: int = Field(0, ge=0, lt=MAX_STEPS, description="The step before which it arrives.")


class SimulateRequest(StrictModel):
    """The body of POST /v1/learn/simulate."""

    requests: list[SimulatedArrival] = Field(min_length=1, max_length=MAX_REQUESTS)
    num_blocks: int = Field(64, ge=1, le=128, description="Blocks in the pool.")
    block_size: int = Field(16, ge=1, le=64, description="Tokens in a block.")
    max_num_seqs: int = Field(8, ge=1, le=MAX_REQUESTS, description="Sequences in a batch.")
    max_batch_tokens: int = Field(64, ge=1, le=4096, description="Tokens in a step.")
    max_inter_token_ms: float | None = Field(
        None, gt=0, le=10_000, description="Target of a step while others generate, as `--max-inter-token-latency`."
    )
    step_ms: float = Field(10, gt=0, le=1000, description="Milliseconds of a step, whatever it computes.")
    token_ms: float = Field(1, ge=0, le=100, description="Milliseconds of each of its tokens.")
    waits_for_all: bool = Field(False, description="A batch starts only when all requests of the last one are done.")


class SimulatedRow(ResponseModel):
    """What a step computes of one request."""

    request: int  # its place in the list
    start: int  # tokens that were computed or found in the prefix cache before
    num_tokens: int
    num_new_tokens: int  # that it generates
    is_prompt: bool  # tokens of the prompt, or tokens that a preemption lost
    blocks: list[int]  # its block table in this step


class SimulatedStep(ResponseModel):
    """One step of the scheduler."""

    step: int
    start_ms: float
    end_ms: float
    rows: list[SimulatedRow]
    waiting: list[int]
    preempted: list[int]
    num_used_blocks: int
    num_cached_blocks: int  # free ones that hold a prefix


class SimulatedRequest(ResponseModel):
    """How a request went."""

    block_hashes: list[str]  # of the full blocks of its prompt: equal where text and beginning are equal
    joined: int  # the step in which it left the queue first
    first_token: int  # the step
    finished: int  # the step
    num_cached_tokens: int  # of its prompt, found in the prefix cache
    num_preemptions: int


class Simulation(ResponseModel):
    """What the scheduler did."""

    steps: list[SimulatedStep]
    requests: list[SimulatedRequest]
