"""OverlappedEngine: schedule, launch, commit the step before. For devices that compute while Python goes on: GPUs."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from typing_extensions import override

from caravan.model.llama import Llama
from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.decode_step import DecodeScheduler
from caravan.scheduler.device_step import NUM_PADDING_BLOCKS, DeviceSteps
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.engine import Engine
from caravan.scheduler.faults import is_out_of_memory
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.messages import StepOutput
from caravan.scheduler.overlap import Overlap, Pending
from caravan.scheduler.profile import Profile
from caravan.scheduler.prompt_result import PromptResult
from caravan.scheduler.sampling_launch import HostSamples, LaunchedSampler
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.step_graph import Capture, without_graph
from caravan.scheduler.warm_up import warm_up

Submit = Callable[[Callable[[], Pending]], Pending]  # lets the device do work, in the order of the calls


def enqueue(work: Callable[[], Pending]) -> Pending:
    """Do work that only enqueues kernels, as PyTorch does on a GPU."""
    return work()


def is_decode(plan: list[ScheduledSequence]) -> bool:
    """Return whether every sequence of a plan computes its last token, to get the next one, and nothing else."""
    return all(one.num_rows == 1 and one.num_logits == 1 and not one.scored_positions for one in plan)


class TimedPending(NamedTuple):
    """Samples to be, for which the wait is a lap of the profile."""

    pending: Pending
    lap: Callable[[str], None]

    def result(self) -> list[Sample | None]:
        """See Pending."""
        samples = self.pending.result()
        self.lap("wait")
        return samples


class OverlappedEngine(Engine):
    """An engine that has the next step on the device while it commits the last one.

    Its answers are those of Engine. Steps that need the host in the middle run as they do there, one after another.
    """

    model: Llama
    scheduler_type = DecodeScheduler

    def __init__(
        self,
        model: Llama,
        config: EngineConfig,
        kv_dtype: torch.dtype,
        device: torch.device,
        sampler: LaunchedSampler,
        *,
        profile: Profile | None = None,
        grammars: Grammars | None = None,
        draft_model: DraftModel | None = None,
        capture: Capture = without_graph,
        submit: Submit = enqueue,
    ) -> None:
        """`capture` records decode steps as graphs. `submit` may do its work later, in another thread."""
        super().__init__(model, config, kv_dtype, device, profile, grammars, draft_model, NUM_PADDING_BLOCKS)
        self._submit, self._sampler, self._capture = submit, sampler, capture
        self._draw = sampler.sample  # of serial steps: a row's bits must not tell which kind its step was
        self._is_warm = False
        self._start_over()

    @property
    @override
    def has_work(self) -> bool:
        return super().has_work or bool(self._overlap.ahead)

    @override
    def step(self) -> StepOutput:
        if not self._overlap.ahead:  # else its plan uses no poisoned block, but may copy what was in one
            self._clear_poisoned_blocks()
        return self._overlap.step()

    @override
    def shrink_pool(self) -> None:
        self._overlap.abandon()
        self.device_steps.release_graphs()
        del self.device_steps, self._overlap  # their memory is free for those that follow
        super().shrink_pool()
        self._start_over()
        if self._is_warm and not self._has_room_to_warm_up():
            self.shrink_pool()

    def warm_up(self) -> None:
        """Record decode steps and launch each kernel that requests can reach, before the first request; see warm_up.

        It is done again, to record steps, after the pool has shrunk.
        """
        self._is_warm = True
        model, steps = self.model, self.device_steps
        warm_up(steps, self._sampler, self._draft_model, self.config, model.config.vocab_size, self._device)

    def _has_room_to_warm_up(self) -> bool:
        """Warm up, and return whether there was memory for it."""
        try:
            self.warm_up()
        except Exception as error:  # its traceback holds tensors until the end
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def launch(self, plan: list[ScheduledSequence], num_logits: list[int]) -> Pending:
        """Announce a plan, with the number of samples of each sequence, and let the device compute it."""
        self._lap("schedule")
        self._prepare(plan)
        device_steps = self.device_steps
        staged = device_steps.stage(plan, num_logits)
        self._lap("batch")
        pending = self._submit(lambda: device_steps.run(staged))
        self._lap("launch")
        return TimedPending(pending, self._lap)

    @override
    def compute(self, plan: list[ScheduledSequence]) -> tuple[list[Sample | None], dict[int, PromptResult]]:
        """See Engine. Where all rows decode, the model's part is that of an overlapped step, which may be a graph."""
        if not is_decode(plan):
            return super().compute(plan)
        try:
            staged = self.device_steps.stage(plan, [1] * len(plan), is_sampled=False)
            self._lap("batch")
            logits = self.device_steps.logits(staged)
        except Exception:
            self._forget_rows()
            raise
        self._lap("launch")
        return self._sampled(plan, logits), {}

    def _start_over(self) -> None:
        """Forget what is launched, and keep the tensors of steps for the KV cache as it is."""
        self.device_steps = DeviceSteps(
            self.model, self.kv_cache, self.config, self._device, self._sampler, self._capture
        )
        self._overlap = Overlap(
            self.scheduler, self.launch, self.run, self._forget_rows, counts_tokens=self._sampler.counts_tokens
        )

    def _forget_rows(self) -> None:
        self.device_steps.forget_rows()  # those of now: a bound method would keep the old pool

    @override
    def _announce(self, request_ids: list[int]) -> None:
        """Report the requests of a step and of the one before it, which the device may still compute."""
        known = set(request_ids)
        earlier = [scheduled.sequence.request.request_id for scheduled in self._overlap.ahead]
        super()._announce(request_ids + [request_id for request_id in earlier if request_id not in known])

    @override
    def _clear_block(self, block: int) -> None:
        self._submit(lambda: self._cleared(block)).result()  # after all that was launched, which may write to the block

    def _cleared(self, block: int) -> Pending:
        super()._clear_block(block)
        return HostSamples(torch.empty(0), [])
