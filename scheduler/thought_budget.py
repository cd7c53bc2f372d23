"""ThoughtBudget: how long the thought at the beginning of an output may be, and how it is ended.

The engine knows tokens and no text. So the API process describes the marks around thoughts as an automaton over tokens:
a state is the part of a mark that the text ends with, and most tokens lead to the same state from everywhere. The
position of an output in the automaton follows from its tokens alone, whatever else is in the batch.
"""

from bisect import bisect_left
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import msgspec

OVER = 0  # there is no thought, or it has ended; no token leads out of this state
INSIDE = 1  # a thought that ends with no part of its closing mark


class MarkAutomaton(msgspec.Struct, frozen=True, kw_only=True):
    """The states of a text and the tokens that lead from one to another.

    States up to `num_inside` are OVER and those inside a thought; the rest are before it. A token that is not listed
    leads from inside to INSIDE, and from before to OVER.
    """

    num_inside: int
    num_states: int
    token_ids: tuple[int, ...]  # ascending
    next_states: bytes  # [token_ids, num_states]

    def next_state(self, state: int, token_id: int) -> int:
        """Return the state after a token."""
        index = bisect_left(self.token_ids, token_id)
        if index < len(self.token_ids) and self.token_ids[index] == token_id:
            return self.next_states[index * self.num_states + state]
        return INSIDE if self.is_inside(state) else OVER

    def is_inside(self, state: int) -> bool:
        """Return whether a state is inside a thought."""
        return INSIDE <= state <= self.num_inside


class ThoughtBudget(msgspec.Struct, frozen=True, kw_only=True):
    """The budget of one request."""

    max_tokens: int  # of the thought, after which its closing mark is forced
    closing_token_ids: tuple[int, ...]  # of the closing mark
    first_state: int
    automaton: MarkAutomaton


@dataclass
class ThoughtPosition:
    """Where the output of one sequence is, as far as it was read."""

    budget: ThoughtBudget
    state: int
    num_read: int = 0  # output tokens
    num_tokens: int = 0  # of the thought

    @classmethod
    def of(cls, budget: ThoughtBudget) -> "ThoughtPosition":
        """Return the position of an empty output."""
        return cls(budget, budget.first_state)

    @property
    def is_over(self) -> bool:
        """Whether there is no thought, or it has ended."""
        return self.state == OVER

    def read(self, token_ids: Seq[int], num_prompt_tokens: int = 0) -> None:
        """Read the output tokens of a text that were not read before, up to one that is unknown (negative)."""
        automaton = self.budget.automaton
        while self.state != OVER and self.num_read < len(token_ids) - num_prompt_tokens:
            token_id = token_ids[num_prompt_tokens + self.num_read]
            if token_id < 0:
                return
            self.num_read += 1
            self.num_tokens += automaton.is_inside(self.state)
            self.state = automaton.next_state(self.state, token_id)

    def after(self, token_ids: Seq[int]) -> "ThoughtPosition":
        """Return the position after more tokens; this one stays as it is."""
        position = ThoughtPosition(self.budget, self.state, 0, self.num_tokens)
        position.read(token_ids)
        return position

    def may_force(self, num_unknown: int) -> bool:
        """Return whether the token after `num_unknown` more tokens may be a forced one."""
        return self.state != OVER and self.num_tokens + num_unknown >= self.budget.max_tokens

    def forced_token(self, token_ids: Seq[int]) -> int | None:
        """Return the only token that may follow a text, which was read to its end; None: any.

        If the thought ends with the beginning of the closing mark, the rest of it follows.
        """
        budget = self.budget
        if not budget.automaton.is_inside(self.state) or self.num_tokens < budget.max_tokens:
            return None
        closing = budget.closing_token_ids
        for length in range(min(len(closing) - 1, self.num_tokens), 0, -1):
            if tuple(token_ids[-length:]) == closing[:length]:
                return closing[length]
        return closing[0]
