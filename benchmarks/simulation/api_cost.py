"""ApiCost: what the API process adds to a request."""

import msgspec


class ApiCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of the API process. It delivers one token after the other, beside the engine's next step."""

    request_seconds: float = 0.0  # from the arrival to the engine's queue; all of a request is later by them
    token_seconds: float = 0.0  # of a streamed token

    def __post_init__(self) -> None:
        if not (0 <= self.request_seconds < 60 and 0 <= self.token_seconds < 1):
            raise ValueError("The costs of the API process must be seconds from 0 on.")
