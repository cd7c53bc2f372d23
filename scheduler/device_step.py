"""DeviceSteps: steps that are launched without waiting for the device, and read nothing back before their tokens.

Block tables and the last token of each sequence stay on the device. What a step brings is one copy: tokens, positions,
rows, new entries of block tables, and how rows are sampled. A decode step is padded to a size of a ladder, so that it
is the same sequence of operations on the same tensors each time, which a graph can record.
"""

from itertools import accumulate, compress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caravan.model.cuda.recorded_event import recorded_event
from caravan.model.cuda.staging import Array, StagedArrays, Staging
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.model.sampling.sampler import SamplingRow
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.device_rows import DeviceRows
from caravan.scheduler.sampling_launch import HostSamples, LaunchedSampler, PendingSamples
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.step_graph import Capture, Decode, ladder, padded_size, without_graph

NUM_PROMPT_ARRAYS = 8
NUM_PADDING_BLOCKS = 1  # after those of the pool: padding rows write there, and nothing else reads it
SPARE_BYTES = 2**14  # of a step's staged arrays: for biases of its rows, and for alignment


class StagedStep(NamedTuple):
    """A step as the device needs it: nothing in it changes with the scheduler."""

    arrays: StagedArrays  # see DeviceSteps.stage
    num_seqs: int
    decode_size: int  # of the ladder; 0: the step computes prompts
    sampling_rows: list[SamplingRow]
    copied_blocks: list[tuple[int, int]]  # from, to


class DeviceSteps:
    """The tensors that stay on the device, and the two halves of a step: staged on the host, run on the device."""

    def __init__(
        self,
        model: Llama,
        kv_cache: KVCache,
        config: EngineConfig,
        device: torch.device,
        sampler: LaunchedSampler,
        capture: Capture = without_graph,
    ) -> None:
        """kv_cache has NUM_PADDING_BLOCKS more blocks than the pool; `capture` records decode steps."""
        self._model, self._kv_cache, self._config, self._sampler = model, kv_cache, config, sampler
        self._capture = capture
        self._ladder = ladder(config.max_num_seqs)
        self._decodes: dict[int, Decode] = {}  # by size
        self._rows = DeviceRows(config.max_num_seqs, config.max_num_blocks)
        self._padding_row = config.max_num_seqs
        num_rows, max_tokens = config.max_num_seqs + 1, config.max_batch_tokens
        max_updates = 2 * num_rows + max_tokens // config.block_size + config.max_num_blocks  # more: more memory
        num_words = 5 * num_rows + 3 * max_tokens + 2 * max_updates
        num_bytes = 8 * num_words + sum(array.nbytes for array in sampler.stage([], [], [])) + SPARE_BYTES
        self._staging = Staging(num_bytes, device)
        self._words = self._staging.memory[: 8 * 3 * num_rows].view(torch.int64)  # of decode steps
        self._logits = torch.empty(config.max_num_seqs, model.config.vocab_size, device=device)  # of all graphs
        self._last_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._block_tables = torch.full(
            (num_rows, config.max_num_blocks), config.num_blocks, dtype=torch.int32, device=device
        )
        self._counts = torch.arange(num_rows, dtype=torch.int32, device=device)
        self._wanted = torch.arange(num_rows, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Record the decode steps of all sizes, the largest first, with padding rows alone."""
        for size in reversed(self._ladder):
            words = np.array([self._padding_row, 0, 0]).repeat(size)
            self._words[: 3 * size].copy_(torch.from_numpy(words))
            self._decode(size)

    def release_graphs(self) -> None:
        """Release what was recorded: it holds this object, and so the KV cache, until then."""
        self._decodes.clear()

    def forget_rows(self) -> None:
        """Let the next step bring all block tables, as one that was staged has failed."""
        self._rows = DeviceRows(self._config.max_num_seqs, self._config.max_num_blocks)

    def stage(self, plan: list[ScheduledSequence], num_logits: list[int], *, is_sampled: bool = True) -> StagedStep:
        """Return a plan that is not empty, with num_logits samples (0 or 1) of each sequence, as its step's numbers.

        Arrays of a decode step: rows, token ids, positions, each padded, end to end. Of others, for B sequences, T
        tokens and S samples: positions [T], rows [B], query_start_loc [B + 1], seq_lens [B], token ids [T], row of each
        token [T], tokens to sample after [S], their rows [S]. Then for both the places and blocks of new entries, and
        the sampler's, without which (not is_sampled) a step ends with its logits.
        A token that the host does not know is negative.
        """
        rows, places, blocks = self._rows.assign(plan)
        computed = [scheduled.sequence.num_computed_tokens for scheduled in plan]
        decode_size = 0
        if all(num_logits) and all(scheduled.num_tokens == 1 for scheduled in plan):
            decode_size = padded_size(len(plan), self._ladder)
            padding = [0] * (decode_size - len(plan))
            token_ids = [s.sequence.token_ids[start] for s, start in zip(plan, computed, strict=True)]
            padded_rows = rows + [self._padding_row] * len(padding)
            arrays: list[Array] = [np.array(padded_rows + token_ids + padding + computed + padding)]
        else:
            arrays = _prompt_arrays(plan, num_logits, rows, computed)
        arrays += [np.array(places, np.int64), np.array(blocks, np.int32)]
        sampled = [*compress(zip(plan, rows, strict=True), num_logits if is_sampled else ())]
        texts = [scheduled.sequence.token_ids for scheduled, _ in sampled]
        sampling_rows = [
            SamplingRow(sequence.request.params, len(text) - len(sequence.request.prompt_token_ids))
            for ((sequence, *_), _), text in zip(sampled, texts, strict=True)
        ]
        if sampling_rows:
            arrays += self._sampler.stage(sampling_rows, [row for _, row in sampled], texts)
        return StagedStep(
            arrays=self._staging.stage(arrays),
            num_seqs=len(plan),
            decode_size=decode_size,
            sampling_rows=sampling_rows,
            copied_blocks=[
                (scheduled.copied_block, scheduled.first_block(self._config.block_size))
                for scheduled in plan
                if scheduled.copied_block is not None
            ],
        )

    @torch.inference_mode()
    def run(self, staged: StagedStep) -> PendingSamples:
        """Start a staged step and return its samples to be. Steps must be run in the order in which they were staged.

        On a GPU this enqueues work and waits for none of it.
        """
        sections, parameters = self._start(staged)
        if staged.decode_size:
            logits, rows = self._decode(staged.decode_size)[: staged.num_seqs], sections[0][: staged.num_seqs]
        else:
            hidden, rows = self._hidden_states(sections), sections[-1]
            if not staged.sampling_rows:
                return HostSamples(rows, [], recorded_event(rows.device))  # its staging buffer is in use until then
            logits = self._model.logits(hidden)
        pending = self._sampler.launch(logits, staged.sampling_rows, parameters)
        self._last_tokens.index_copy_(0, rows, pending.token_ids.clamp(min=0))
        return pending

    @torch.inference_mode()
    def logits(self, staged: StagedStep) -> Tensor:
        """Start a staged decode step that is not sampled, and return its logits, until the next step."""
        assert staged.decode_size
        self._start(staged)
        return self._decode(staged.decode_size)[: staged.num_seqs]

    def _start(self, staged: StagedStep) -> tuple[list[Tensor], list[Tensor]]:
        """Copy a step to the device, write block tables, and return its other arrays, those of the sampler apart."""
        for source, target in staged.copied_blocks:
            self._kv_cache.copy_block(source, target)
        arrays = self._staging.copy(staged.arrays)
        num_sections = 1 if staged.decode_size else NUM_PROMPT_ARRAYS
        places, blocks, *parameters = arrays[num_sections:]
        if places.shape[0]:
            self._block_tables.view(-1).index_copy_(0, places, blocks)
        return arrays[:num_sections], parameters

    def _decode(self, size: int) -> Tensor:
        """Return the logits [size, vocab_size] of the decode step that the words describe."""
        decode = self._decodes.get(size)
        if decode is None:
            decode = self._decodes[size] = self._capture(lambda: self._decode_rows(size))
        return decode()

    @torch.inference_mode()
    def _decode_rows(self, size: int) -> Tensor:
        """Compute a decode step from the tensors that stay on the device alone: a graph records this."""
        rows, token_ids, positions = self._words[: 3 * size].view(3, size)
        block_tables = self._block_tables.index_select(0, rows)  # [size, max_num_blocks]
        block_size = self._config.block_size
        blocks = block_tables.gather(1, (positions // block_size).unsqueeze(1)).squeeze(1)
        batch = ForwardBatch(
            token_ids=self._known(token_ids, rows),
            positions=positions,
            slot_mapping=blocks.to(torch.int64) * block_size + positions % block_size,
            query_start_loc=self._counts[: size + 1],
            seq_lens=(positions + 1).to(torch.int32),
            block_tables=block_tables,
            wanted_rows=self._wanted[:size],
        )
        logits = self._model.logits(self._model.hidden_states(batch, self._kv_cache))
        return self._logits[:size].copy_(logits)

    def _hidden_states(self, sections: list[Tensor]) -> Tensor:
        """Return the hidden states [S, hidden_size] to sample from, of a step with prompts."""
        positions, rows, query_start_loc, seq_lens, token_ids, token_rows, wanted, _ = sections
        block_size = self._config.block_size
        blocks = self._block_tables[token_rows, positions // block_size]  # [T]
        batch = ForwardBatch(
            token_ids=self._known(token_ids, token_rows),
            positions=positions,
            slot_mapping=blocks.to(torch.int64) * block_size + positions % block_size,
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            block_tables=self._block_tables.index_select(0, rows),
            wanted_rows=wanted,
        )
        return self._model.hidden_states(batch, self._kv_cache)

    def _known(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        """Return token ids [T], those that the host does not know from the last tokens of their rows [T]."""
        return torch.where(token_ids < 0, self._last_tokens.index_select(0, rows), token_ids)


def _prompt_arrays(
    plan: list[ScheduledSequence], num_logits: list[int], rows: list[int], computed: list[int]
) -> list[Array]:
    """Return the NUM_PROMPT_ARRAYS arrays of a step with prompts, for sequences with these rows and computed tokens."""
    lengths = [scheduled.num_tokens for scheduled in plan]
    ends = [*accumulate(lengths)]
    sampled = [index for index, count in enumerate(num_logits) if count]
    positions = [p for start, length in zip(computed, lengths, strict=True) for p in range(start, start + length)]
    return [
        np.array(positions),
        np.array(rows),
        np.array([0, *ends], np.int32),
        np.array([start + length for start, length in zip(computed, lengths, strict=True)], np.int32),
        np.array([token_id for scheduled in plan for token_id in scheduled.token_ids]),
        np.repeat(rows, lengths),
        np.array([ends[index] - 1 for index in sampled], np.int64),
        np.array([rows[index] for index in sampled], np.int64),
    ]
