"""ResponseLog: a log line, and spans if they are wanted, for each HTTP request that has ended."""

import logging
from dataclasses import dataclass

from caravan.server.observe.http_record import HttpRecord
from caravan.server.observe.tracing import Tracer


@dataclass(frozen=True, kw_only=True)
class ResponseLog:
    """Call it with the record of each request."""

    has_all: bool  # also requests that are no POST
    has_model: bool  # the name of the model, where several are served
    tracer: Tracer | None

    def __call__(self, record: HttpRecord) -> None:
        """Log a request, and trace its generation."""
        generation = record.generation
        if record.method == "POST" or self.has_all:
            fields = record.log_fields()
            if self.has_model and generation is not None:
                fields["model"] = generation.model_name
            logging.getLogger("caravan.requests").info("request", extra=fields)
        if self.tracer is not None and generation is not None:
            self.tracer.trace(record, generation)
