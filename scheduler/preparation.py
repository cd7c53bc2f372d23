"""Preparation: what a waiting sequence needs besides a place and blocks: its adapter, and the mask of its grammar."""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

from caravan.scheduler.messages import SequenceOutput, WaitReason
from caravan.scheduler.sequence import Sequence


class AdapterState(NamedTuple):
    """The adapter of a sequence that has a place in the batch."""

    is_ready: bool  # in memory, or it never will be
    problem: str = ""  # why it cannot be had


NO_WAIT = AdapterState(is_ready=True)


class Adapters(Protocol):
    """The adapters of an engine, as the scheduler uses them."""

    def find(self, name: str, running: Seq[Sequence]) -> AdapterState:
        """Return the state of an adapter, and begin to read it if it is not in memory.

        Those of running sequences stay there, and there is room for another one.
        """


class Preparation(NamedTuple):
    """Why a sequence does not join: it has to wait, or ends with an error. Neither: it can join."""

    wait: WaitReason | None = None
    rejection: SequenceOutput | None = None


def preparation(sequence: Sequence, adapters: Adapters | None, running: Seq[Sequence]) -> Preparation:
    """Return what keeps a sequence that has a place from joining the running ones."""
    state = NO_WAIT if adapters is None else adapters.find(sequence.request.adapter, running)
    if not state.is_ready:
        return Preparation("adapter being read")
    if state.problem:
        return Preparation(rejection=sequence.error_output(state.problem))
    matcher = sequence.matcher
    if matcher is None:
        return Preparation()
    if not matcher.is_ready:
        return Preparation("grammar being compiled")
    if matcher.problem:
        return Preparation(rejection=sequence.error_output(matcher.problem, "grammar"))
    return Preparation()
