"""Asker: on whose behalf a request runs, and how soon."""

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

NO_KEY = ""  # the name under which all ask where there are no keys
SCOPE_NAME = "caravan.key_name"  # where the guard leaves the name of the key that it let through
SCOPE_USAGE = "caravan.usage"  # where the tokens of prompt and answer are left for the log


@dataclass(frozen=True)
class Asker:
    """What the queue and the prefix cache know of who asks."""

    key_name: str = NO_KEY
    priority: int = 0  # lower is sooner
    cache_salt: str = ""  # prefix blocks are shared within one only
    on_usage: Callable[[int, int], None] = field(default=lambda *_: None, compare=False)  # tokens of prompt and answer


def asker_of(scope: Scope, priority: int, cache_salt: str) -> Asker:
    """Return who asks; keys never share cached prefixes, so that none can find out by time what another has sent."""
    name: str = scope.get(SCOPE_NAME, NO_KEY)

    def remember(num_prompt_tokens: int, num_completion_tokens: int) -> None:
        scope[SCOPE_USAGE] = (num_prompt_tokens, num_completion_tokens)

    return Asker(name, priority, f"{name}\n{cache_salt}" if name != NO_KEY else cache_salt, remember)
