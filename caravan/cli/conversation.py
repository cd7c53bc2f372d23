"""Conversation: what is said in a chat, and with which options the model answers."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, str]


@dataclass
class AnswerOptions:
    """Options of a request; None leaves the choice to the server."""

    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    enable_thinking: bool | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of a request for the options that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Conversation:
    """The system message, and a question and an answer for each turn."""

    model: str
    system: str | None = None
    options: AnswerOptions = field(default_factory=AnswerOptions)
    turns: list[tuple[str, str]] = field(default_factory=list)  # without thoughts

    def messages(self, question: str, *, without_last: bool = False) -> list[Message]:
        """Return the messages of a request for the answer to a question; the last turn can be left out."""
        turns = self.turns[:-1] if without_last else self.turns
        return [*self._messages(turns), {"role": "user", "content": question}]

    def save(self, path: Path) -> None:
        """Write all to a new file: as JSON if its name ends with .json, else as Markdown; raises OSError."""
        if path.suffix == ".json":
            body = {"model": self.model, **self.options.fields(), "messages": self._messages(self.turns)}
            text = json.dumps(body, ensure_ascii=False, indent=1) + "\n"
        else:
            said = [
                f"**{message['role'].title()}:**\n\n{message['content']}\n" for message in self._messages(self.turns)
            ]
            text = "\n".join([f"# Conversation with {self.model}\n", *said])
        with path.open("x", encoding="utf-8") as file:
            file.write(text)

    def _messages(self, turns: list[tuple[str, str]]) -> list[Message]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages
