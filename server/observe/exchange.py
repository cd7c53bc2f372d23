"""Exchange: one HTTP request with its answer, when it has ended, for logs and traces."""

from dataclasses import dataclass

from caravan.server.observe.request_end import RequestEnd


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What is known of an exchange: nothing that a client can choose, beside its harmless id and its trace."""

    request_id: str
    client: str  # an address, parsed
    key_name: str
    method: str
    route: str  # template, never the path that was sent
    status: int
    seconds: float
    trace_parent: str  # W3C's header, unchecked; empty without
    end: RequestEnd | None  # of a request for text or vectors that was accepted

    def log_fields(self) -> dict[str, object]:
        """Return what is logged of it; seconds are counted from its arrival."""
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "key": self.key_name or "-",
            "seconds": round(self.seconds, 3),
        }
        return fields if self.end is None else fields | self.end.log_fields()
