"""SchemaError: why a JSON schema cannot be enforced."""


class SchemaError(ValueError):
    """A schema cannot be enforced exactly; the message names the keyword or the limit."""
