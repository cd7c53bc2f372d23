"""Engine: schedule, run, commit."""

import time
from collections.abc import Callable

import msgspec
import torch

from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.model.sampling.sample import Sample
from caravan.scheduler.batch import BatchBuilder
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.constrained_rows import draw_rows
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.isolation import StepResult, run_isolated
from caravan.scheduler.messages import Request, StepOutput
from caravan.scheduler.profile import Profile
from caravan.scheduler.prompt_logprobs import PromptReading, read_prompts
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence

GRAMMAR_PAUSE_SECONDS = 0.001  # between two looks at whether a grammar is compiled


class Engine:
    """A model, its KV cache and the scheduler that shares them out."""

    def __init__(
        self,
        model: Llama,
        config: EngineConfig,
        kv_dtype: torch.dtype,
        device: torch.device,
        profile: Profile | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """Without `grammars` no request may have one."""
        self.model = model
        self.kv_cache = KVCache(model.config, config.num_blocks, config.block_size, kv_dtype, device)
        self.config = config
        self.scheduler = Scheduler(config)
        self._batch_builder = BatchBuilder(config.max_num_seqs, config.max_num_blocks, config.block_size, device)
        self._grammars = grammars
        self.on_batch: Callable[[list[int]], None] = lambda _: None  # gets which requests the engine now works on
        self._lap: Callable[[str], None] = profile.lap if profile else lambda _: None

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue."""
        matcher = None
        if request.grammar:
            assert self._grammars is not None, "the server refuses grammars for models that cannot have them"
            matcher = self._grammars.matcher(request.grammar, request.output_token_ids, request.key)
        self.scheduler.add(request, matcher)

    def step(self) -> StepOutput:
        """Return what one step over the active batch produced; without work, an empty output."""
        started = time.monotonic()
        if self._grammars is not None:
            self._grammars.end_slow_calls()
        plan = self.scheduler.schedule()
        self._lap("schedule")
        self._announce(plan)
        if not plan and self.scheduler.waiting:
            time.sleep(GRAMMAR_PAUSE_SECONDS)  # all that is there waits for its grammar
        result = run_isolated(self.run, plan) if plan else StepResult([])
        output = self.scheduler.commit(plan, *result)
        for block in self.scheduler.take_spoiled_blocks():
            self.kv_cache.clear_block(block)
        self._lap("commit")
        step_seconds = time.monotonic() - started
        self.scheduler.observe_seconds(step_seconds)
        stats = msgspec.structs.replace(output.stats, step_seconds=step_seconds)
        return msgspec.structs.replace(output, stats=stats)

    def _announce(self, plan: list[ScheduledSequence]) -> None:
        """Say what the engine works on from now on: a step, and grammars beside it."""
        compiling = self.scheduler.waiting.compiling
        self.on_batch([*(scheduled.sequence.request.request_id for scheduled in plan), *compiling])

    def run(self, plan: list[ScheduledSequence]) -> tuple[list[Sample | None], dict[int, PromptReading]]:
        """Return the next token of each scheduled sequence that wants one, in the plan's order, and what was read."""
        for scheduled in plan:
            if scheduled.copied_block is not None:
                self.kv_cache.copy_block(scheduled.copied_block, scheduled.first_block(self.config.block_size))
        batch = self._batch_builder.build(plan)
        self._lap("batch")
        hidden = self.model.hidden_states(batch, self.kv_cache)  # [S, hidden_size]
        hidden, readings = read_prompts(self.model, plan, hidden)
        logits = self.model.logits(hidden)  # [rows to draw from, vocab_size]
        self._lap("rest")
        samples = draw_rows(plan, logits, self._grammars.limits.wait_seconds if self._grammars else 0.0)
        self._lap("sample")
        return samples, readings
