"""The same eight requests, batch by batch and continuously: who computes in which step. Drawn from the scheduler."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.step_result import StepResult
from docs.figures.style import BLUE, ORANGE, TEXT, panels

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


def draw() -> Figure:
    """Return the figure."""
    figure, axes = panels(8.4, 2.8, columns=2)
    kinds = ((False, "batch by batch", ORANGE), (True, "continuous", BLUE))
    for panel, (is_continuous, title, colour) in zip(axes, kinds, strict=True):
        steps = timeline(LENGTHS, is_continuous=is_continuous)
        for step, requests in enumerate(steps):
            for request in requests:
                panel.barh(request, 1, left=step, color=colour, alpha=0.8, height=0.7)
        panel.set_xlim(0, 38)
        panel.set_yticks(range(len(LENGTHS)))
        panel.invert_yaxis()
        panel.set_xlabel("step")
        panel.set_title(f"{title}: {len(steps)} steps", color=TEXT)
    axes[0].set_ylabel("request")
    return figure
