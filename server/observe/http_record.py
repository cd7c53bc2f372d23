"""HttpRecord: one HTTP request and its response, at its end, for logs and traces."""

from dataclasses import dataclass

from caravan.server.observe.request_record import RequestRecord


@dataclass(frozen=True, kw_only=True)
class HttpRecord:
    """The facts of an HTTP request: nothing a client can choose, except its harmless id and its trace."""

    request_id: str
    client: str  # an address, parsed
    key_name: str
    method: str
    route: str  # the route's template, never the path that was sent
    status: int
    seconds: float
    trace_parent: str  # W3C's header, unchecked; empty without one
    generation: RequestRecord | None  # of a request for text or vectors that was admitted

    def log_fields(self) -> dict[str, object]:
        """Return the fields of the request's log line; seconds count from its arrival."""
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "key": self.key_name or "-",
            "seconds": round(self.seconds, 3),
        }
        return fields if self.generation is None else fields | self.generation.log_fields()
