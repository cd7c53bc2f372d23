"""`caravan bench`: load for any OpenAI-style server, and what its clients then see."""


class BenchFailed(ValueError):
    """The server cannot be measured as asked; the message is one line for the user."""
