"""LocalGeneration: the choices of one call of LLM while the engine produces them."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from functools import partial

from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.offline.engine import LocalEngine
from caravan.offline.prompt_job import PromptJob
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.errors import GenerationFailed
from caravan.server.generation.stop_strings import StopStrings
from caravan.server.generation.text_model import TextModel
from caravan.server.generation.text_stream import ShownPrompt, TextDelta, TextStream


class LocalGeneration:
    """All choices of some prompts: those of the first prompt, then those of the second, and so on.

    They are submitted when `deltas` or `deltas_async` is first read, and steps run while it is read. When reading
    stops, for any reason, the unfinished choices are aborted.
    """

    def __init__(self, engine: LocalEngine, model: TextModel, jobs: Sequence[PromptJob]) -> None:
        self._engine = engine
        self._model = model
        self._jobs = jobs
        self._news: deque[int] = deque()  # choices that may have something to take
        self._streams: list[TextStream] = []
        self._num_open = sum(len(job.params) for job in jobs)  # choices whose last delta is still to come

    def deltas(self) -> Generator[tuple[int, TextDelta], None, None]:
        """Yield deltas as (choice index, delta); raises RuntimeError if the engine fails."""
        try:
            self._submit()
            while self._num_open:
                if not self._news:
                    self._engine.step().result()
                yield from self._take()
        finally:
            self._abort()

    async def deltas_async(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """Yield the same as `deltas`, without blocking the event loop."""
        try:
            self._submit()
            while self._num_open:
                if not self._news:
                    # Others wait for the same step: who is cancelled must not cancel it.
                    await asyncio.shield(asyncio.wrap_future(self._engine.step()))
                for index, delta in self._take():
                    yield index, delta
        finally:
            self._abort()

    def _submit(self) -> None:
        for job in self._jobs:
            stop_strings = StopStrings(job.request.stop)
            group = secrets.randbits(63) if len(job.params) > 1 else 0
            for params in job.params:
                on_news = partial(self._news.append, len(self._streams))
                tokens = self._engine.submit(job.token_ids, params, on_news, group)
                self._streams.append(self._text_stream(tokens, job, stop_strings))

    def _text_stream(self, tokens: OutputQueue, job: PromptJob, stop_strings: StopStrings) -> TextStream:
        has_prompt_logprobs = job.request.num_prompt_logprobs is not None
        return TextStream(
            tokens,
            Detokenizer(self._model.tokenizer, shown=self._model.shown_token_ids),
            stop_strings,
            stop_token_ids=job.params[0].stop_token_ids,
            include_stop_string=job.request.include_stop_str_in_output,
            min_tokens=job.request.min_tokens,
            prompt=ShownPrompt(job.token_ids, [], has_prompt_logprobs) if has_prompt_logprobs else None,
            splitter=None if job.thoughts is None else job.thoughts.splitter(),
        )

    def _take(self) -> Iterator[tuple[int, TextDelta]]:
        while self._news:
            index = self._news.popleft()
            try:
                delta = self._streams[index].take()
            except GenerationFailed as error:
                raise RuntimeError(f"The engine failed on choice {index}: {error}") from None
            if delta is None:
                continue
            if delta.finish_reason is not None:
                self._num_open -= 1
            yield index, delta

    def _abort(self) -> None:
        """Abort the choices that have not ended."""
        for stream in self._streams:
            stream.abort()
