"""Replica: one engine in virtual time, with the real scheduler and without a model."""

from collections.abc import Callable

from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.step_cost import StepCost, StepLoad
from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request, StepOutput
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.step_result import StepResult

SAMPLE = Sample(1000)  # an ordinary token; requests end by their length

Compute = Callable[[list[ScheduledSequence]], StepResult]


def made_up(plan: list[ScheduledSequence]) -> StepResult:
    """Return a sample for each row that a plan samples from."""
    return StepResult([SAMPLE] * sum(scheduled.wants_logits for scheduled in plan))


class Replica:
    """A scheduler and the step that it is in. A step takes the seconds of its cost."""

    def __init__(self, scheduler: Scheduler, cost: StepCost, compute: Compute = made_up) -> None:
        """`compute` returns the result of a plan; with that of a real engine, its scheduler runs in virtual time."""
        assert scheduler.config.speculation == "off", "whether draft tokens are accepted depends on texts"
        self.scheduler = scheduler
        self.num_outstanding = 0  # requests that have not ended
        self.plan: list[ScheduledSequence] | None = None  # of the step that runs
        self.load = StepLoad()  # the same
        self._cost = cost
        self._compute = compute
        self._result = StepResult([])

    def submit(self, request: Request) -> None:
        """Add a request; the next step sees it."""
        self.num_outstanding += 1
        self.scheduler.add(request)

    @property
    def is_ready(self) -> bool:
        """Whether a step can start: none runs, and there is work."""
        return self.plan is None and self.scheduler.has_work

    def start_step(self) -> float:
        """Start a step and return how long it takes, in seconds."""
        assert self.is_ready
        self.plan = self.scheduler.schedule()
        assert self.plan, "a scheduler with work has work for a step"
        self.load = StepLoad.of(self.plan)
        self._result = self._compute(self.plan)
        return self._cost.seconds(self.load)

    def end_step(self) -> StepOutput:
        """Commit the step that runs and return its output."""
        assert self.plan is not None
        output = self.scheduler.commit(self.plan, self._result)
        self.plan = None
        self.num_outstanding -= sum(one.finish_reason is not None for one in output.outputs)
        return output


def simulated_replica(config: EngineConfig, cost: StepCost, clock: VirtualClock) -> Replica:
    """Return an idle replica."""
    return Replica(Scheduler(config, clock), cost)
