"""HttpRecord: one HTTP request and its response, for logs and traces."""

from dataclasses import dataclass

from caravan.server.observe.request_record import RequestRecord


@dataclass(frozen=True, kw_only=True)
class HttpRecord:
    """An HTTP request that has ended. Clients can choose only the validated request id and the trace parent."""

    request_id: str
    client: str  # a parsed address
    key_name: str
    method: str
    route: str  # the route's template, never the path that was sent
    status: int
    seconds: float
    trace_parent: str  # the W3C traceparent header, not validated; may be empty
    generation: RequestRecord | None  # None unless a generation was admitted

    def log_fields(self) -> dict[str, object]:
        """Return the fields of the request's log line; seconds since its arrival."""
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
