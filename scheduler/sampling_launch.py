"""Sampling behind a launch: what a step needs of a sampler whose tokens stay on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from caravan.model.cuda.staging import Array
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

    @property
    def counts_tokens(self) -> bool:
        """Whether launched rows may have penalties."""
        ...

    def stage(
        self, rows: Sequence[SamplingRow], slots: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> Sequence[Array]:
        """Return how rows without grammars are sampled, as arrays that the device gets before `launch`.

        They are valid until the next call. Each row has a slot of its own, which it keeps in consecutive steps, and the
        text that it continues: the same object in all steps. Its last token may be unknown if the step before, which
        was launched, samples it.
        """
        ...

    def launch(self, logits: Tensor, rows: Sequence[SamplingRow], staged: Sequence[Tensor]) -> PendingSamples:
        """Start to sample rows of logits [S, vocab_size], with what `stage` returned for them on the device.

        The logits may change after the launch.
        """
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

    counts_tokens = False

    def stage(self, rows: Sequence[SamplingRow], slots: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Array]:  # noqa: ARG002
        """Return nothing: the parameters stay on the host."""
        return []

    def launch(self, logits: Tensor, rows: Sequence[SamplingRow], staged: Sequence[Tensor]) -> HostSamples:
        """Sample rows of logits [S, vocab_size]."""
        assert not staged
        samples = sample(logits, rows)
        token_ids = [one.token_id if one is not None else -1 for one in samples]
        return HostSamples(torch.tensor(token_ids, dtype=torch.int64).to(logits.device), samples)

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], find_masks: FindMasks | None = None
    ) -> list[Sample | None]:
        """Sample rows of logits [S, vocab_size]."""
        return sample(logits, rows, find_masks)
