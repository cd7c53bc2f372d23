"""Profile: how long each part of the engine's steps takes."""

import time
from collections.abc import Callable

from caravan.model.llama import Llama

PARTS = ("schedule", "batch", "linears", "attention", "rest", "sample", "commit", "send")
REPORT_SECONDS = 5.0  # of steps between two reports


class Profile:
    """Seconds by part, measured in laps: each lap belongs to the part that has just ended.

    `rest` is the model without its linear layers and attention. Time without work is not counted.
    """

    def __init__(self, model: Llama, write: Callable[[str], object]) -> None:
        self._write = write
        self._model_seconds = model.start_profile()  # None: the model measures no parts, and all of it is rest
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._num_steps = 0
        self._num_tokens = 0

    def start_step(self) -> None:
        """Begin the first lap of a step."""
        self._laps: list[tuple[str, float]] = []
        self._lap_started = time.perf_counter()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to a part."""
        now = time.perf_counter()
        self._laps.append((part, now - self._lap_started))
        self._lap_started = now

    def end_step(self, num_tokens: int) -> None:
        """Count a step that computed num_tokens tokens, unless it was idle; write a report every REPORT_SECONDS."""
        if not num_tokens:
            return
        for part, seconds in self._laps:
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds  # "draft" only with a draft model
        self._num_steps += 1
        self._num_tokens += num_tokens
        if sum(self._seconds.values()) >= REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        """Write a table of the steps since the last report, if there were any, and reset the counts."""
        if not self._num_steps:
            return
        if self._model_seconds is not None:
            linears, attention = self._model_seconds.tolist()
            self._seconds["linears"], self._seconds["attention"] = linears, attention
            self._seconds["rest"] -= linears + attention
            self._model_seconds.zero_()
        total = sum(self._seconds.values())
        lines = [
            f"{self._num_steps} steps of {total / self._num_steps * 1e3:.2f} ms, "
            f"{self._num_tokens / self._num_steps:.1f} tokens each"
        ]
        for part, seconds in self._seconds.items():
            lines.append(f"  {part:<10} {seconds / self._num_steps * 1e3:8.3f} ms {seconds / total:6.1%}")
        self._write("\n".join(lines) + "\n")
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._num_steps = self._num_tokens = 0
