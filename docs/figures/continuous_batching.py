"""The same eight requests, batch by batch and continuously: who computes in which step. Drawn from the scheduler."""

from collections.abc import Iterator

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.step_result import StepResult
from docs.figures.drawing import BLUE, ORANGE, box, figure, text

LENGTHS = [6, 20, 9, 14, 5, 17, 8, 11]  # tokens each request generates
SLOTS = 4


def timeline(lengths: list[int], *, is_continuous: bool) -> list[list[int]]:
    """Return which requests compute in each step."""
    waves = [lengths] if is_continuous else [lengths[i : i + SLOTS] for i in range(0, len(lengths), SLOTS)]
    steps: list[list[int]] = []
    for wave, wave_lengths in enumerate(waves):
        scheduler = Scheduler(EngineConfig(num_blocks=64, max_num_seqs=SLOTS, max_model_len=128))
        for index, length in enumerate(wave_lengths):
            params = SamplingParams(seed=0, max_tokens=length)
            scheduler.add(Request(request_id=wave * SLOTS + index, prompt_token_ids=[1, 2, 3], params=params))
        steps += _run(scheduler)
    return steps


def _run(scheduler: Scheduler) -> Iterator[list[int]]:
    while scheduler.has_work:
        plan = scheduler.schedule()
        yield [scheduled.sequence.request.request_id for scheduled in plan]
        scheduler.commit(plan, StepResult([Sample(7)] * len(plan)))


def draw() -> str:
    """Return the figure."""
    parts = []
    kinds = ((False, "Batch by batch", ORANGE), (True, "Continuous", BLUE))
    for panel, (is_continuous, title, colour) in enumerate(kinds):
        top = 196 * panel
        steps = timeline(LENGTHS, is_continuous=is_continuous)
        parts.append(text(0, top + 14, f"{title}: {len(steps)} steps", is_bold=True))
        for request in range(len(LENGTHS)):
            y = top + 24 + 20 * request
            parts.append(text(12, y + 13, str(request), "end"))
            own = [step for step, requests in enumerate(steps) if request in requests]
            parts.append(box(20 + 9 * own[0], y, 9 * len(own), 16, colour, 0.6, is_outlined=False))
    return figure(386, parts)
