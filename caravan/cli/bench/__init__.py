"""`caravan bench`: measure any server with an OpenAI-compatible API, as its clients see it."""


class BenchFailed(ValueError):
    """The measurement is not possible; the message is one line for the user."""
