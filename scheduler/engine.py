"""Engine: schedule, run, commit."""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from caravan.model.kv_cache import KVCache
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import Draw, sample
from caravan.scheduler.batch import BatchBuilder
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.constrained_rows import draw_rows
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.engine_model import EngineModel
from caravan.scheduler.faults import is_fatal
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.isolation import run_isolated
from caravan.scheduler.messages import Request, StepOutput
from caravan.scheduler.profile import Profile
from caravan.scheduler.prompt_logprobs import compute_prompts
from caravan.scheduler.prompt_result import PromptResult
from caravan.scheduler.resident_adapters import ResidentAdapters
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.smaller_pool import shrink_pool
from caravan.scheduler.step_result import StepResult

logger = logging.getLogger(__name__)

GRAMMAR_PAUSE_SECONDS = 0.001  # between two checks whether a grammar is compiled


class Engine:
    """A model, its KV cache and the scheduler that shares them between requests."""

    scheduler_type = Scheduler

    def __init__(
        self,
        model: EngineModel,
        config: EngineConfig,
        kv_dtype: torch.dtype,
        device: torch.device,
        profile: Profile | None = None,
        grammars: Grammars | None = None,
        draft_model: DraftModel | None = None,
        num_padding_blocks: int = 0,
    ) -> None:
        """Without `grammars`, requests must not have one. Blocks for padding come after those of the pool."""
        model.check_block_size(config.block_size)  # or raise ValueError
        self.model = model
        self.config = config
        self._device = device
        num_blocks = config.num_blocks + num_padding_blocks
        self.kv_cache = self._new_kv_cache(num_blocks, kv_dtype)
        self.scheduler = self.scheduler_type(config)
        self._batch_builder = BatchBuilder(config.max_num_seqs, config.max_num_blocks, config.block_size, device)
        self._grammars = grammars
        self.adapters: ResidentAdapters | None = None  # set by who has some
        self._draft_model = draft_model
        self._draw: Draw = sample
        self.on_batch: Callable[[list[int]], None] = lambda _: None  # gets the ids of the requests of each step
        self._lap: Callable[[str], None] = profile.lap if profile else lambda _: None

    def close(self) -> None:
        """Release what the engine has outside of this process: nothing, if its model has one rank."""

    def _new_kv_cache(self, num_blocks: int, kv_dtype: torch.dtype) -> KVCache:
        return KVCache(self.model.config, num_blocks, self.config.block_size, kv_dtype, self._device)

    @property
    def kv_caches(self) -> list[KVCache]:
        """The KV cache of the model, and that of the draft model if there is one."""
        return [self.kv_cache, *([self._draft_model.kv_cache] if self._draft_model is not None else [])]

    @property
    def has_work(self) -> bool:
        """Whether the next step has something to do."""
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Append a request to the queue."""
        matcher = None
        if request.grammar:
            assert self._grammars is not None, "the server rejects grammars for models that cannot have them"
            matcher = self._grammars.matcher(request.grammar, request.output_token_ids, request.key)
        self.scheduler.add(request, matcher)

    def step(self) -> StepOutput:
        """Run one step and return its output, which is empty if there is no work."""
        self._clear_poisoned_blocks()  # before a plan, which lets the thread of the spill file write to free blocks
        plan = self.scheduler.schedule()
        result = self.run(plan)
        return self.scheduler.commit(plan, result)

    def shrink_pool(self) -> None:
        """Make the pool smaller and compute all running sequences again: for a GPU with too little memory for a step.

        Raises MemoryError if the pool is as small as it can be.
        """
        self.config = shrink_pool(self.scheduler, self.kv_caches)

    def run(self, plan: list[ScheduledSequence]) -> StepResult:
        """Announce a plan and compute it, sequence by sequence if computing it at once fails.

        Unknown draft tokens of the plan are replaced by those of the draft model.
        """
        self._lap("schedule")
        self._prepare(plan)
        self._complete(plan)
        if plan:
            return run_isolated(self.compute, plan)
        if self.scheduler.waiting:
            time.sleep(GRAMMAR_PAUSE_SECONDS)  # all requests wait for their grammars
        return StepResult([])

    def _prepare(self, plan: list[ScheduledSequence]) -> None:
        """Do what comes before the computation of a plan."""
        self._announce([scheduled.sequence.request.request_id for scheduled in plan])
        if self._grammars is not None:
            self._grammars.end_slow_calls()

    def _complete(self, plan: list[ScheduledSequence]) -> None:
        """Put the tokens of the draft model into a plan. If it fails, it is not used again: wrong drafts do no harm."""
        drafts = self.scheduler.model_drafts
        if self._draft_model is None or drafts is None:
            return
        try:
            self._draft_model.complete(plan, drafts.policy.observe_run)
        except Exception as error:
            if is_fatal(error):
                raise
            logger.exception("The draft model failed; the engine continues without it.")
            assert self.scheduler.draft_tokens is not None
            self.scheduler.draft_tokens.model = None
        self._lap("draft")

    def compute(self, plan: list[ScheduledSequence]) -> tuple[list[Sample | None], dict[int, PromptResult]]:
        """Return the samples of a plan, in its order, and the results for prompts, by index in the plan."""
        for scheduled in plan:
            if scheduled.copied_block is not None:
                self.kv_cache.copy_block(scheduled.copied_block, scheduled.first_block(self.config.block_size))
        batch = self._batch_builder.build(plan)
        if self.adapters is not None:
            batch = self.adapters.assigned(batch, plan)
        self._lap("batch")
        hidden = self.model.hidden_states(batch, self.kv_cache)  # [S, hidden_size]
        prompts: dict[int, PromptResult] = {}
        if any(scheduled.scored_positions for scheduled in plan):
            hidden, prompts = compute_prompts(self.model, plan, hidden)
        logits = self.model.logits(hidden)  # [rows to sample from, vocab_size]
        self._lap("rest")
        return self._sampled(plan, logits), prompts

    def _sampled(self, plan: list[ScheduledSequence], logits: Tensor) -> list[Sample | None]:
        """Return the samples of a plan for its logits [rows to sample from, vocab_size]."""
        samples = draw_rows(plan, logits, self._draw, self._grammars.limits.wait_seconds if self._grammars else 0.0)
        self._lap("sample")
        return samples

    def _announce(self, request_ids: list[int]) -> None:
        """Report the requests that the engine works on: those of a plan, and those whose grammars it compiles."""
        self.on_batch([*request_ids, *self.scheduler.waiting.compiling])

    def _clear_poisoned_blocks(self) -> None:
        for block in self.scheduler.blocks.take_poisoned():
            self._clear_block(block)
            if (drafts := self.scheduler.model_drafts) is not None:
                drafts.forget(block)

    def _clear_block(self, block: int) -> None:
        for kv_cache in self.kv_caches:
            kv_cache.clear_block(block)
