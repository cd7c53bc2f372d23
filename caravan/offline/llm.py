"""LLM: a model in a Python program, without HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from caravan.download.resolve import DEFAULT_MODEL
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.offline.generation import LocalGeneration
from caravan.offline.loading import load_model
from caravan.offline.prompt_job import Params, PromptJob, chat_jobs, prompt_jobs
from caravan.offline.results import (
    GenerationResult,
    Message,
    Prompt,
    StreamDelta,
    TemplateValue,
    choice_of,
    delta_of,
    token_logprobs,
)
from caravan.offline.settings import engine_settings
from caravan.scheduler.messages import StepStats
from caravan.server.generation.text_stream import TextDelta, join_deltas

if TYPE_CHECKING:
    from caravan.scheduler.engine import Engine

Conversation = Sequence[Message]
TemplateKwargs = Mapping[str, TemplateValue] | None


class LLM:
    """A model with its engine: continuous batching, paged KV cache and prefix cache, as `caravan serve` has it.

    `generate`, `chat` and `stream` are for scripts and notebooks; `agenerate`, `achat` and `astream` are the same for
    code that runs in an event loop. All calls share the engine's batch. Results are the same as the server's, bit for
    bit: both take the defaults of parameters from the model's generation_config.json.

    The engine lives in this process, so that a debugger steps through the model, and `engine` shows the scheduler and
    the block pool. It runs in a thread of its own, one step at a time and only while a call waits for tokens: between
    two deltas of a stream nothing changes. If the engine crashes, so does the program. The server therefore has its
    engine in another process.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        chat_template: str | Path | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        quantization: Literal["auto", "none", "native", "int8", "int4"] = "auto",
        fast_matmul: bool = False,
        kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = "auto",
        kv_cache_memory: int | str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_batch_tokens: int | None = None,
        block_size: int = 16,
        speculation: Literal["auto", "on", "off"] = "auto",
        draft_model: str | Path | None = None,
        merge_lora: str | Path | None = None,
        tensor_parallel: int = 1,
        num_threads: int | None = None,
    ) -> None:
        """Load `model`: `smollm2`, a file, a folder or a Hugging Face id, fetched if need be.

        The options are those of `caravan serve`. `chat_template` is a Jinja file, `kv_cache_memory` a number of bytes
        or a text such as "4GiB". `num_threads` holds for PyTorch in the whole process.
        Raises ValueError (an option or a model that cannot be used), OSError, MemoryError, or ModelUnavailable if the
        model cannot be fetched.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        settings = engine_settings(
            options | {"model": str(model), "draft_model": None if draft_model is None else str(draft_model)}
        )
        self._local, self._model = load_model(settings)

    @property
    def engine(self) -> "Engine":
        """The engine with its scheduler, block pool, KV cache and model, to inspect between calls."""
        return self._local.engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer: `encode`, `decode`, `texts`."""
        return self._model.tokenizer

    @property
    def max_model_len(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self._model.max_model_len

    def stats(self) -> StepStats:
        """Return how many sequences run and wait, and how many blocks are in use, with the counts of the last step."""
        return self._local.stats()

    def generate(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None) -> list[GenerationResult]:
        """Return a result for each prompt, in their order: a text, token ids, or a list of such prompts.

        Any number of prompts may wait in the scheduler's queue for a place in the batch. `sampling_params` are for all
        prompts, or a list with one for each. Raises ValueError before anything runs, RuntimeError if the engine fails.
        """
        return self._whole(prompt_jobs(self._model, prompts, sampling_params))

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        *,
        chat_template_kwargs: TemplateKwargs = None,
    ) -> list[GenerationResult]:
        """Return a result for each conversation, a list of messages such as {"role": "user", "content": "..."}.

        The model's chat template writes them as a prompt, with the variables `chat_template_kwargs`, such as
        {"enable_thinking": False}. What a model thinks is the result's `reasoning`. Without `max_tokens` an answer may
        be as long as fits. Raises as `generate` does.
        """
        return self._whole(chat_jobs(self._model, messages, sampling_params, chat_template_kwargs))

    def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: Params = None,
        *,
        chat_template_kwargs: TemplateKwargs = None,
    ) -> Generator[StreamDelta, None, None]:
        """Return an iterator over the deltas of one prompt or one conversation.

        If the reader stops early, the sequences end and their blocks are freed. Raises ValueError at once, RuntimeError
        if the engine fails.
        """
        return self._deltas(self._stream_job(prompt, sampling_params, chat_template_kwargs))

    async def agenerate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None
    ) -> list[GenerationResult]:
        """Return what `generate` does; other tasks of the event loop run meanwhile and may share the batch."""
        return await self._whole_async(await asyncio.to_thread(prompt_jobs, self._model, prompts, sampling_params))

    async def achat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        *,
        chat_template_kwargs: TemplateKwargs = None,
    ) -> list[GenerationResult]:
        """Return what `chat` does; other tasks of the event loop run meanwhile and may share the batch."""
        jobs = await asyncio.to_thread(chat_jobs, self._model, messages, sampling_params, chat_template_kwargs)
        return await self._whole_async(jobs)

    def astream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: Params = None,
        *,
        chat_template_kwargs: TemplateKwargs = None,
    ) -> AsyncGenerator[StreamDelta, None]:
        """Return what `stream` does, for `async for`."""
        return self._deltas_async(self._stream_job(prompt, sampling_params, chat_template_kwargs))

    def close(self) -> None:
        """End the engine and give its memory back; happens by itself when the object is no longer used."""
        self._local.close()
        if self._model.chat_template is not None:
            self._model.chat_template.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _stream_job(
        self, prompt: Prompt | Conversation, sampling_params: Params, template_kwargs: TemplateKwargs
    ) -> PromptJob:
        is_chat = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
        if is_chat:
            jobs = chat_jobs(self._model, prompt, sampling_params, template_kwargs)  # type: ignore[arg-type]  # messages
        elif template_kwargs is not None:
            raise ValueError("`chat_template_kwargs` are for conversations; this prompt is none.")
        else:
            jobs = prompt_jobs(self._model, prompt, sampling_params, "prompt")  # type: ignore[arg-type]  # no messages
        if len(jobs) != 1:
            raise ValueError(f"`prompt` has {len(jobs)} prompts; a stream can have only one.")
        if jobs[0].request.prompt_logprobs is not None:
            raise ValueError("`prompt_logprobs` cannot be streamed.")
        return jobs[0]

    def _whole(self, jobs: list[PromptJob]) -> list[GenerationResult]:
        gathered: list[list[TextDelta]] = [[] for job in jobs for _ in job.params]
        for index, delta in LocalGeneration(self._local, self._model, jobs).deltas():
            gathered[index].append(delta)
        return self._results(jobs, gathered)

    async def _whole_async(self, jobs: list[PromptJob]) -> list[GenerationResult]:
        gathered: list[list[TextDelta]] = [[] for job in jobs for _ in job.params]
        async with aclosing(LocalGeneration(self._local, self._model, jobs).deltas_async()) as deltas:
            async for index, delta in deltas:
                gathered[index].append(delta)
        return self._results(jobs, gathered)

    def _deltas(self, job: PromptJob) -> Generator[StreamDelta, None, None]:
        with closing(LocalGeneration(self._local, self._model, [job]).deltas()) as deltas:
            for index, delta in deltas:
                yield delta_of(index, delta, self.tokenizer, has_logprobs=job.request.logprobs is not None)

    async def _deltas_async(self, job: PromptJob) -> AsyncGenerator[StreamDelta, None]:
        async with aclosing(LocalGeneration(self._local, self._model, [job]).deltas_async()) as deltas:
            async for index, delta in deltas:
                yield delta_of(index, delta, self.tokenizer, has_logprobs=job.request.logprobs is not None)

    def _results(self, jobs: list[PromptJob], gathered: list[list[TextDelta]]) -> list[GenerationResult]:
        whole = iter(map(join_deltas, gathered))
        return [self._result(job, [next(whole) for _ in job.params]) for job in jobs]

    def _result(self, job: PromptJob, deltas: list[TextDelta]) -> GenerationResult:
        has_logprobs = job.request.logprobs is not None
        has_prompt_logprobs = job.request.prompt_logprobs is not None
        return GenerationResult(
            prompt=job.prompt,
            prompt_token_ids=tuple(job.token_ids),
            choices=tuple(
                choice_of(index, delta, self.tokenizer, has_logprobs=has_logprobs) for index, delta in enumerate(deltas)
            ),
            num_cached_tokens=min(delta.num_cached_tokens for delta in deltas),
            prompt_logprobs=token_logprobs(deltas[0].prompt_entries, self.tokenizer) if has_prompt_logprobs else None,
        )
