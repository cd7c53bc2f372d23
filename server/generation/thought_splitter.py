"""ThoughtSplitter: splits a model's text into its thought and its content while it arrives."""

from dataclasses import dataclass
from typing import Literal

from caravan.scheduler.thought_budget import ThoughtBudget, ThoughtPosition
from caravan.server.sandbox.thought_marks import ThoughtMarks, ThoughtStart

SPACE = " \t\n\r\f\v"  # may stand before the opening mark


@dataclass(frozen=True)
class Thoughts:
    """The marks around a model's thoughts, and how a response begins."""

    marks: ThoughtMarks
    start: ThoughtStart

    def splitter(self, budget: ThoughtBudget | None = None) -> "ThoughtSplitter | None":
        """Return the splitter of one text, None if it is content from its beginning."""
        return None if self.start == "closed" else ThoughtSplitter(self, budget)


class ThoughtSplitter:
    """Splits one text. The joined parts do not depend on how the text is divided into chunks.

    A thought is at the beginning of a text, after white space and its opening mark, which the prompt may have instead.
    Later marks are content. Line breaks around the thought and before the content are dropped, as chat templates write
    them themselves.

    If a text ends in the middle of the closing mark, that part of the mark is text of the thought, as the model has
    written it. After the end of a budget it is not: the engine has forced it.
    """

    def __init__(self, thoughts: Thoughts, budget: ThoughtBudget | None = None) -> None:
        self._opening, self._closing = thoughts.marks
        self._position = None if budget is None else ThoughtPosition.of(budget)
        self._is_open = thoughts.start == "open"
        self._held = ""  # text that may be the beginning of a mark, or line breaks that may end the thought
        self._place: Literal["before", "inside", "after", "content"] = "before"
        self._has_thought = False  # some text of the thought was returned

    @property
    def is_over(self) -> bool:
        """Whether the content has begun: all text that follows is content."""
        return self._place == "content"

    @property
    def is_undecided(self) -> bool:
        """Whether the text so far may belong to either."""
        return self._place == "before"

    def count(self, token_id: int) -> None:
        """Count a token for the budget; its text is pushed after it."""
        if self._position is not None:
            self._position = self._position.after([token_id])

    def push(self, text: str) -> tuple[str, str]:
        """Return the text of the thought and of the content that is known now."""
        if self._place == "before":
            self._held += text
            text = self._pass_opening()
        thought = ""
        if self._place == "inside":
            thought, text = self._read_thought(text)
        if self._place == "after":
            text = text.lstrip("\n")
            if text:
                self._place = "content"
        return thought, text

    def flush(self) -> tuple[str, str]:
        """Return the text that was held back; call it at the end of the text."""
        held, self._held = self._held, ""
        if self._place == "before" and not self._is_open:
            self._place = "content"
            return "", held
        if self._is_mark_forced:
            held = held[: len(held) - self._num_of_mark(held)]
        return self._shown(held.rstrip("\n")), ""

    @property
    def _is_mark_forced(self) -> bool:
        """Whether the engine has chosen a token of the closing mark since the thought has used up its budget."""
        position = self._position
        return position is not None and not position.is_over and position.num_tokens > position.budget.max_tokens

    def _num_of_mark(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of the closing mark."""
        lengths = range(min(len(self._closing) - 1, len(text)), 0, -1)
        return next((length for length in lengths if text.endswith(self._closing[:length])), 0)

    def _pass_opening(self) -> str:
        """Return the text after the opening mark, or all of it if it does not begin with one; empty if that is open."""
        text = self._held.lstrip(SPACE)
        if self._opening.startswith(text):
            if text != self._opening:
                return ""
            text = ""
        elif text.startswith(self._opening):
            text = text[len(self._opening) :]
        elif self._is_open:
            text = self._held
        else:
            text, self._held, self._place = self._held, "", "content"
            return text
        self._held, self._place = "", "inside"
        return text

    def _read_thought(self, text: str) -> tuple[str, str]:
        """Return more text of the thought, and the text after its closing mark."""
        text = self._held + text
        thought, mark, rest = text.partition(self._closing)
        if mark:
            self._held, self._place = "", "after"
            return self._shown(thought.rstrip("\n")), rest
        thought = text[: len(text) - self._num_of_mark(text)].rstrip("\n")
        self._held = text[len(thought) :]
        return self._shown(thought), ""

    def _shown(self, thought: str) -> str:
        if not self._has_thought:
            thought = thought.lstrip("\n")
            self._has_thought = bool(thought)
        return thought
