"""Sampling behind a launch: what a step needs of a sampler whose tokens stay on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import FindMasks, SamplingRow, sample


class PendingSamples(Protocol):
    """The samples of a launch. The next launch may read token_ids; the host waits only in `result`."""

    @property
    def token_ids(self) -> Tensor:
        """[S] int64 on the device of the logits; -1 for a row whose logits are not finite."""
        ...

    def result(self) -> list[Sample | None]:
        """Wait and return what `caravan.model.sampling.sampler.sample` returns for the same logits and rows."""
        ...


class LaunchedSampler(Protocol):
    """A sampler that starts sampling and does not wait for it."""

    def launch(self, logits: Tensor, rows: Sequence[SamplingRow]) -> PendingSamples:
        """Start to sample rows of logits [S, vocab_size] without grammars. The logits may change after the launch."""
        ...

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], find_masks: FindMasks | None = None
    ) -> list[Sample | None]:
        """Sample rows, also with grammars, and wait: a row gets what `launch` gives it, whatever the others are."""
        ...


@dataclass(frozen=True)
class HostSamples:
    """Samples that are known already."""

    token_ids: Tensor  # [S] int64
    samples: list[Sample | None]
    finished: torch.cuda.Event | None = None  # of a step that a GPU may still compute

    def result(self) -> list[Sample | None]:
        """Wait for the step and return the samples."""
        if self.finished is not None:
            self.finished.synchronize()
        return self.samples


class HostSampler:
    """The sampler of model/sampling, as a LaunchedSampler that waits: for the CPU, and for tests."""

    def launch(self, logits: Tensor, rows: Sequence[SamplingRow]) -> HostSamples:
        """Sample rows of logits [S, vocab_size]."""
        samples = sample(logits, rows)
        token_ids = [one.token_id if one is not None else -1 for one in samples]
        return HostSamples(torch.tensor(token_ids, dtype=torch.int64).to(logits.device), samples)

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], find_masks: FindMasks | None = None
    ) -> list[Sample | None]:
        """Sample rows of logits [S, vocab_size]."""
        return sample(logits, rows, find_masks)
