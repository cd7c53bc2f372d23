"""DraftModel: a small model that proposes the next tokens of sequences, which the target verifies."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch

from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.model.sampling.sampler import largest_logits
from caravan.scheduler.batch import BatchBuilder, Span
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.sequence import ScheduledSequence, Sequence


class DraftModel:
    """A model with the vocabulary of the target, and a KV cache with the blocks of the target's.

    One block table serves both caches. The draft model computes a token when it is needed for a draft, not when the
    target computes it, so it costs nothing where it does not pay.
    """

    def __init__(self, model: Llama, config: EngineConfig, kv_dtype: torch.dtype, device: torch.device) -> None:
        """Raises ValueError for a block size that the model cannot have."""
        assert config.max_draft_model_len, "the scheduler plans for a draft model"
        model.check_block_size(config.block_size)
        self.kv_cache = KVCache(model.config, config.num_blocks, config.block_size, kv_dtype, device)
        self._model = model
        self._builder = BatchBuilder(config.max_num_seqs, config.max_num_blocks, config.block_size, device)

    def complete(self, plan: list[ScheduledSequence], observe_run: Callable[[int, float], None]) -> None:
        """Put the draft tokens of the model into a plan, where they are unknown.

        One run computes the tokens of all sequences that the model has not computed yet, and each further run one more
        draft token of each. `observe_run` gets the rows and the seconds of a run.
        """
        drafts: dict[int, list[int]] = {index: [] for index, one in enumerate(plan) if one.num_draft_model_rows}
        spans: dict[int, Span] = {}
        for index in drafts:
            sequence, start = plan[index].sequence, plan[index].sequence.num_draft_computed_tokens
            token_ids = sequence.token_ids[start : start + plan[index].num_draft_model_rows]
            spans[index] = Span(sequence, start, token_ids)
        while spans:
            wanted = [index for index in spans if len(drafts[index]) < plan[index].num_model_draft_tokens]
            started_seconds = time.perf_counter()
            token_ids = self._run(spans, wanted)
            observe_run(sum(len(span.token_ids) for span in spans.values()), time.perf_counter() - started_seconds)
            for index, token_id in zip(wanted, token_ids, strict=True):
                drafts[index].append(token_id)
            spans = {
                index: Span(plan[index].sequence, plan[index].sequence.num_tokens + len(drafts[index]) - 1, token_ids)
                for index in wanted
                if len(drafts[index]) < plan[index].num_model_draft_tokens and (token_ids := drafts[index][-1:])
            }
        for index, token_ids in drafts.items():
            if token_ids:
                plan[index] = plan[index]._replace(draft_token_ids=tuple(token_ids))

    def warm_up(self, sequences: Seq[Sequence]) -> None:
        """Compute all tokens of sequences, and the tokens after them, for nothing but that it was done once."""
        self._run({index: Span(one, 0, one.token_ids) for index, one in enumerate(sequences)}, range(len(sequences)))

    def _run(self, spans: dict[int, Span], wanted: Seq[int]) -> list[int]:
        """Compute spans and return the most probable token after each of those that are wanted."""
        last_rows: dict[int, int] = {}
        num_rows = 0
        for index, span in spans.items():
            num_rows += len(span.token_ids)
            last_rows[index] = num_rows - 1
        batch = self._builder.build_spans([*spans.values()], [last_rows[index] for index in wanted])
        hidden = self._model.hidden_states(batch, self.kv_cache)
        if not wanted:
            if hidden.is_cuda:
                torch.cuda.synchronize(hidden.device)  # or the time of a run would be that of its launches
            return []
        token_ids: list[int] = largest_logits(self._model.logits(hidden))[1].tolist()
        return token_ids
