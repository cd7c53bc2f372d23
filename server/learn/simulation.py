"""The engine's scheduler without a model: which requests compute in which step, and with which blocks."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.block_pool import hash_block, num_blocks_for, root_hash
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request, StepOutput
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.step_result import StepResult
from caravan.server.http.errors import invalid
from caravan.server.learn.simulation_protocol import (
    MAX_STEPS,
    SimulatedRequest,
    SimulatedRow,
    SimulatedStep,
    SimulateRequest,
    Simulation,
)

_OUTPUT_ID = 2**31  # of every generated token: no prompt has it
_HASH_DIGITS = 8  # shown of a block's hash


@dataclass
class _Clock:
    """The time of the simulation, in seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(body: SimulateRequest) -> Simulation:
    """Return what the scheduler does with the requests; raises ApiError if one of them never fits, or after MAX_STEPS.

    Every request generates `max_tokens` tokens. A step takes `step_ms`, and `token_ms` for each of its tokens.
    """
    _check(body)
    clock = _Clock()
    target_ms = body.max_inter_token_ms
    scheduler = Scheduler(
        EngineConfig(
            num_blocks=body.num_blocks,
            block_size=body.block_size,
            max_batch_tokens=body.max_batch_tokens,
            max_num_seqs=body.max_num_seqs,
            max_model_len=max(body.num_blocks * body.block_size, 2),
            max_inter_token_seconds=None if target_ms is None else target_ms / 1000,
        ),
        clock,
    )
    arrivals = deque(sorted(range(len(body.requests)), key=lambda index: body.requests[index].step))
    results = [
        SimulatedRequest(
            block_hashes=_hashes(one.prompt, body.block_size),
            joined=-1,
            first_token=-1,
            finished=-1,
            num_cached_tokens=0,
            num_preemptions=0,
        )
        for one in body.requests
    ]
    steps: list[SimulatedStep] = []
    step = 0
    while arrivals or scheduler.has_work:
        if step >= MAX_STEPS:
            raise invalid(
                f"The simulation takes more than {MAX_STEPS} steps. Send fewer or shorter requests.", "requests"
            )
        is_open = not (body.waits_for_all and scheduler.has_work)
        while is_open and arrivals and body.requests[arrivals[0]].step <= step:
            if body.waits_for_all and len(scheduler.waiting) >= body.max_num_seqs:
                break
            _add(scheduler, arrivals.popleft(), body)
        if scheduler.has_work:
            late = [index for index in arrivals if body.requests[index].step <= step]
            steps.append(_run(scheduler, clock, body, step, results, late))
        step += 1
    return Simulation(steps=steps, requests=results)


def _check(body: SimulateRequest) -> None:
    """Raise ApiError for a request that is longer than the pool."""
    room = body.num_blocks * body.block_size
    for index, one in enumerate(body.requests):
        size = len(one.prompt) + one.max_tokens
        if size > room:
            raise invalid(
                f"A request has {size} tokens, prompt and output together; the pool holds {room}. "
                "Send more or larger blocks.",
                f"requests[{index}]",
            )
        if min(one.prompt) < 0 or max(one.prompt) >= _OUTPUT_ID:
            raise invalid("Token ids are from 0 to 2147483647.", f"requests[{index}].prompt")


def _add(scheduler: Scheduler, index: int, body: SimulateRequest) -> None:
    one = body.requests[index]
    params = SamplingParams(seed=0, max_tokens=one.max_tokens)
    scheduler.add(Request(request_id=index, prompt_token_ids=one.prompt, params=params))


def _run(
    scheduler: Scheduler,
    clock: _Clock,
    body: SimulateRequest,
    step: int,
    results: list[SimulatedRequest],
    late: list[int],
) -> SimulatedStep:
    """Schedule and commit one step, and record it; `late` are requests that wait outside of the scheduler."""
    start_seconds = clock.now
    plan = scheduler.schedule()
    rows = [_row(scheduled) for scheduled in plan]
    clock.now += (body.step_ms + body.token_ms * sum(one.num_tokens for one in plan)) / 1000
    waiting = [sequence.request.request_id for sequence in scheduler.waiting]
    stats = scheduler.stats()
    output = scheduler.commit(plan, StepResult([Sample(_OUTPUT_ID)] * sum(one.num_logits for one in plan)))
    preempted = _record(output, step, results)
    return SimulatedStep(
        step=step,
        start_ms=round(1000 * start_seconds, 3),
        end_ms=round(1000 * clock.now, 3),
        rows=rows,
        waiting=waiting + late,
        preempted=preempted,
        num_used_blocks=stats.num_used_blocks,
        num_cached_blocks=stats.num_cached_blocks,
    )


def _row(scheduled: ScheduledSequence) -> SimulatedRow:
    sequence = scheduled.sequence
    return SimulatedRow(
        request=sequence.request.request_id,
        start=sequence.num_computed_tokens,
        num_tokens=scheduled.num_tokens,
        num_new_tokens=scheduled.num_logits,
        is_prompt=scheduled.num_tokens > 1 or sequence.num_computed_tokens < sequence.num_prompt_tokens,
        blocks=[*sequence.block_table],
    )


def _record(output: StepOutput, step: int, results: list[SimulatedRequest]) -> list[int]:
    """Write the events and outputs of a step to its requests, and return those that were preempted."""
    preempted = []
    for event in output.events:
        result = results[event.request_id]
        if event.kind == "join" and result.joined < 0:
            result.joined, result.num_cached_tokens = step, event.num_tokens
        if event.kind == "preempt":
            result.num_preemptions += 1
            preempted.append(event.request_id)
    for one in output.outputs:
        result = results[one.request_id]
        if result.first_token < 0:
            result.first_token = step
        if one.finish_reason is not None:
            result.finished = step
    return preempted


def _hashes(token_ids: list[int], block_size: int) -> list[str]:
    """Return the beginnings of the hashes of the full blocks of a prompt, as the block manager computes them."""
    ends = [index * block_size for index in range(num_blocks_for(len(token_ids) + 1, block_size))]
    parent, hashes = root_hash(""), []
    for start, end in pairwise(ends):
        parent = hash_block(parent, token_ids[start:end])
        hashes.append(parent.hex()[:_HASH_DIGITS])
    return hashes
