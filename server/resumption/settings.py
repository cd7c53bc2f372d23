"""The settings of resumable responses."""

from dataclasses import dataclass

from pydantic import BaseModel, ByteSize, Field

from caravan.server.http.option_types import Seconds


@dataclass(frozen=True)
class ResumeLimits:
    """Limits of the responses that are kept for clients to read again."""

    max_streams: int = 64  # running ones, and finished ones that are still kept
    max_bytes: int = 256 * 2**20  # of all together; each has an equal share
    idle_seconds: float = 60.0  # without a reader, after which a response is ended and dropped

    @property
    def max_stream_bytes(self) -> int:
        """The share of one response."""
        return self.max_bytes // max(self.max_streams, 1)


class ResumeSettings(BaseModel):
    """Resumable responses."""

    resume_streams: int = Field(
        ResumeLimits.max_streams,
        ge=0,
        description="Maximum number of responses that clients can read again: of requests with `x-caravan-resume: 1` "
        "or `background`. More get status 429. 0: none.",
    )
    resume_memory: ByteSize = Field(
        ByteSize(ResumeLimits.max_bytes),
        ge=1,
        description="Memory for these responses. Each has an equal share, and keeps its latest events if it is longer.",
    )
    resume_seconds: Seconds = Field(
        ResumeLimits.idle_seconds,
        description="Time without a reader, such as 60s or 5m, after which a response ends and is no longer kept.",
    )

    @property
    def resume_limits(self) -> ResumeLimits:
        """Limits of the responses that are kept."""
        return ResumeLimits(self.resume_streams, int(self.resume_memory), self.resume_seconds)
