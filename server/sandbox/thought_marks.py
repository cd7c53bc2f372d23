"""ThoughtMarks: the text around the thoughts of a model, as its chat template shows them."""

from typing import Literal, NamedTuple

ThoughtStart = Literal["open", "closed", "undecided"]


class ThoughtMarks(NamedTuple):
    """The text before a thought and after it."""

    opening: str
    closing: str

    def start_after(self, prompt: str) -> ThoughtStart:
        """Return how a text begins that follows a prompt: inside a thought, after one, or perhaps with one.

        Some templates open the thought in the prompt, some write an empty one if the model is not to think, and others
        leave the opening to the model.
        """
        end = prompt.rstrip()
        if end.endswith(self.opening):
            return "open"
        return "closed" if end.endswith(self.closing) else "undecided"

    def start_in(self, content: str) -> ThoughtStart:
        """Return how a text begins that continues the content of a message."""
        if self.opening in content or self.closing in content:
            return "open" if content.rfind(self.opening) > content.rfind(self.closing) else "closed"
        return "closed" if content.strip() else "undecided"


_KNOWN_MARKS = (
    ThoughtMarks("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, SmolLM3
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral
    ThoughtMarks("<thinking>", "</thinking>"),
    ThoughtMarks("<|begin_of_thought|>", "<|end_of_thought|>"),
)


def thought_marks(source: str) -> ThoughtMarks | None:
    """Return the marks that the source of a chat template has; None if it has none."""
    return next((marks for marks in _KNOWN_MARKS if marks.closing in source), None)


def opens_thought(prompt: str) -> bool:
    """Return whether a prompt ends with the opening mark of a thought, whatever else the template has."""
    return prompt.rstrip().endswith(tuple(marks.opening for marks in _KNOWN_MARKS))
