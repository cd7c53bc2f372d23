"""VirtualClock: the time of a simulation."""


class VirtualClock:
    """Seconds since the start; a scheduler calls it as it would call time.monotonic."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def move_to(self, seconds: float) -> None:
        """Move forward to a time."""
        assert seconds >= self.now, "time does not go back"
        self.now = seconds
