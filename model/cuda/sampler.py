"""The sampler on a GPU: the same tokens as `caravan.model.sampling.sampler` for the same logits.

Random numbers are computed by the host, from seed and position. What decides a token is computed in the same order of
sums as on the CPU; docs/gpu.md says where a rounding may differ, and how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caravan.model.cuda.recorded_event import recorded_event
from caravan.model.cuda.sampler_launches import SamplerKernels
from caravan.model.cuda.sampling_kernels import KIND, MASK
from caravan.model.cuda.staging import Array
from caravan.model.cuda.token_history import CountedTexts, TokenHistory
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import FindMasks, Masks, SamplingRow, forbids, has_penalties, has_phrases

TOP_WIDTH = 20  # room for log-probabilities of a row, as many as the server allows: so all steps have one kernel


@dataclass(frozen=True)
class CudaSamples:
    """The samples of a launch, which the device may still compute."""

    token_ids: Tensor  # [S] int64 on the device; -1 for a row without a finite greatest logit
    _parts: tuple[Tensor, ...]  # on the host: tokens; where a row asks, log-probabilities, the best and their tokens
    _limits: list[int | None]  # best log-probabilities that a row asks for; None: no log-probabilities
    _copied: torch.cuda.Event | None

    def result(self) -> list[Sample | None]:
        """Wait for the samples and return them, as `caravan.model.sampling.sampler.sample` does."""
        if self._copied is not None:
            self._copied.synchronize()
        token_ids, *rest = (part.tolist() for part in self._parts)
        if not rest:
            return [None if token_id < 0 else Sample(token_id) for token_id in token_ids]
        samples: list[Sample | None] = []
        for token_id, limit, logprob, best, best_ids in zip(token_ids, self._limits, *rest, strict=True):
            if token_id < 0 or limit is None:
                samples.append(None if token_id < 0 else Sample(token_id))
            else:
                samples.append(Sample(token_id, logprob, tuple(best_ids[:limit]), tuple(best[:limit])))
        return samples


class CudaSampler:
    """A sampler for up to num_rows rows of a vocabulary, on a device."""

    counts_tokens = True

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        """Allocate 12 bytes for each row and token, and 4 more when the first row has penalties."""
        self.kernels = SamplerKernels(num_rows, vocab_size, device)
        self._device = device
        self._counted = CountedTexts(vocab_size)

    @torch.inference_mode()
    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], find_masks: FindMasks | None = None
    ) -> list[Sample | None]:
        """Return the next token of each row of logits [S, vocab_size], float32, S <= num_rows.

        As `caravan.model.sampling.sampler.sample`: four bytes a row come back, and what a row that asks for
        log-probabilities wants.
        """
        assert logits.shape == (len(rows), self.kernels.vocab_size)
        self._counted.forget()
        self.kernels.table.stage(rows, self._fill_history(rows))
        self.kernels.launch(logits)
        samples = self._samples(logits, rows).result()
        masked = [i for i, one in enumerate(samples) if one is not None and forbids(rows[i], one.token_id)]
        if not masked:
            return samples
        assert find_masks is not None, "a row has a mask"
        self._launch_masked(logits, rows, masked, find_masks(masked))
        return self._samples(logits, rows).result()

    def stage(self, rows: Sequence[SamplingRow], slots: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Array]:
        """Return how rows are sampled, their masks apart; see LaunchedSampler."""
        assert not any(has_phrases(row.params) for row in rows)
        used = counted_slots(rows, slots)
        counted = [index for index, slot in enumerate(used) if slot >= 0]
        ends = [rows[index].position for index in counted]
        starts = self._counted.extend([used[index] for index in counted], [texts[index] for index in counted], ends)
        return [*self.kernels.table.arrays(rows, used), *starts]

    @torch.inference_mode()
    def launch(self, logits: Tensor, rows: Sequence[SamplingRow], staged: Sequence[Tensor]) -> CudaSamples:
        """Start to sample rows of logits [S, vocab_size], float32, which were staged.

        On a GPU this waits for nothing. At most two launches may be in flight; they run in order.
        """
        assert logits.shape == (len(rows), self.kernels.vocab_size)
        kernels = self.kernels
        *table, slots, places, counts = staged
        kernels.table.place(*table)
        is_counted = any(has_penalties(row.params) for row in rows)
        if is_counted:
            self._allocate_history()
            if slots.shape[0]:
                kernels.history.start(slots, places, counts)
        kernels.launch(logits)
        if is_counted:
            kernels.record()
        return self._samples(logits, rows)

    def _allocate_history(self) -> None:
        """Allocate the history with the first row that has penalties."""
        kernels = self.kernels
        if not kernels.history.counts.numel():
            kernels.history = TokenHistory(kernels.num_rows, kernels.vocab_size, self._device)

    def _fill_history(self, rows: Sequence[SamplingRow]) -> list[int]:
        """Count the tokens of rows with penalties, and return the slot of each row, or -1."""
        slots = counted_slots(rows, range(len(rows)))
        for slot, row in zip(slots, rows, strict=True):
            if slot >= 0:
                self._allocate_history()
                self.kernels.history.fill(slot, row.prompt_token_ids, row.output_token_ids)
        return slots

    def _launch_masked(self, logits: Tensor, rows: Sequence[SamplingRow], masked: list[int], masks: Masks) -> None:
        """Sample masked rows again, with another random number, after their masks [rows, bytes]."""
        kernels = self.kernels
        masks = masks[:, : -(-kernels.vocab_size // 8)]
        assert masks.shape[1] * 8 >= kernels.vocab_size
        kernels.table.stage(rows, [-1] * len(rows), attempt=1)  # penalties are in the scores
        is_masked = np.isin(np.arange(kernels.num_rows), masked)
        place = np.where(is_masked, np.cumsum(is_masked) - 1, -1).astype(np.int32)
        choices = kernels.table.choices.view(-1, kernels.num_rows)
        choices[MASK.value] = torch.from_numpy(place).to(self._device)
        choices[KIND.value] *= torch.from_numpy(is_masked.astype(np.int32)).to(self._device)
        kernels.launch_masks(logits, torch.from_numpy(np.ascontiguousarray(masks)).to(self._device))

    def _samples(self, logits: Tensor, rows: Sequence[SamplingRow]) -> CudaSamples:
        """Return the samples of the launched kernels, and start to copy them to the host."""
        tokens = self.kernels.tokens[: len(rows)]
        parts: tuple[Tensor, ...] = (tokens,)
        wanted = [row.params.num_logprobs for row in rows]
        limits = [None if number is None else min(number, self.kernels.vocab_size) for number in wanted]
        if any(limit is not None for limit in limits):
            width = max(TOP_WIDTH, *(limit or 0 for limit in limits))
            parts += self.kernels.launch_logprobs(logits, width)
        copy = _copied if self._device.type == "cuda" else torch.clone
        parts = tuple(copy(part) for part in parts)
        return CudaSamples(tokens.to(torch.int64), parts, limits, recorded_event(self._device))


def counted_slots(rows: Sequence[SamplingRow], slots: Sequence[int]) -> list[int]:
    """Return the slots of rows with penalties, whose tokens are counted, and -1 for the other rows."""
    return [slot if has_penalties(row.params) else -1 for row, slot in zip(rows, slots, strict=True)]


def _copied(part: Tensor) -> Tensor:
    """Return memory of the host to which a tensor is being copied."""
    return torch.empty_like(part, device="cpu", pin_memory=True).copy_(part, non_blocking=True)
