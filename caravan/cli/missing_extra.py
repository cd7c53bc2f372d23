"""What a command says if packages of an extra are not installed."""


def missing_extra(error: ModuleNotFoundError) -> str:
    """Return the message for Ray, or raise the error if it is about another module."""
    if error.name is None or error.name.partition(".")[0] != "ray":
        raise error
    return "Ray is not installed. Install it with: pip install 'caravan-llm[ray]'"
