"""RequestEnd: what became of one request for text or vectors, in numbers."""

from dataclasses import dataclass

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.server.observe.request_story import RequestStory


@dataclass(frozen=True, kw_only=True)
class RequestEnd:
    """A request that has ended: its counts, and its story for everything else."""

    model_name: str
    story: RequestStory
    num_prompt_tokens: int
    num_cached_tokens: int = 0  # of the prompt's, found in the prefix cache
    num_completion_tokens: int = 0
    params: SamplingParams | None = None  # of its first choice; None if nothing is drawn

    def log_fields(self) -> dict[str, object]:
        """Return counts, times and reasons; times are left out for what never happened."""
        queued, joined = self.story.first_seconds("queued"), self.story.first_seconds("joined")
        times = {
            "queued_seconds": None if queued is None or joined is None else joined - queued,
            "first_token_seconds": self.story.first_seconds("first token"),
        }
        return {
            "id": self.story.answer_id,
            "engine_requests": self.story.engine_numbers(),
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "completion_tokens": self.num_completion_tokens,
            "finish_reasons": self.story.finish_reasons(),
        } | {name: round(seconds, 3) for name, seconds in times.items() if seconds is not None}
