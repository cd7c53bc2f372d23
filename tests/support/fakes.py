"""Stand-ins for the parts of the server that are slow or large: a tokenizer of bytes and an engine with a script."""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence

from caravan.model.sampling.sampling_params import Pooling, SamplingParams
from caravan.model.tokenizer.added_tokens import control_tokens, encode_parsed
from caravan.model.tokenizer.tokenizer import Tokenizer, Unencodable
from caravan.model.tokenizer.vocabulary import TokenType
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import (
    EngineReady,
    FinishReason,
    Request,
    SequenceOutput,
    StepOutput,
    StepStats,
    TokenLogprobs,
)
from caravan.server.engine.client import EngineState
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.output_queue import EngineDied, EngineUnavailable, OutputQueue

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259


class ByteVocabulary:
    """One token for each byte, then <s>, </s>, <|im_start|> and <|im_end|>; U+0004 cannot be encoded."""

    adds_space_prefix = False

    def __init__(self) -> None:
        special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
        self.texts: Sequence[str] = [*map(chr, range(256)), *special]
        self.types: Sequence[TokenType] = [TokenType.BYTE] * 256 + [TokenType.CONTROL] * len(special)
        self.token_bytes: Sequence[bytes] = [*(bytes([byte]) for byte in range(256)), *map(str.encode, special)]
        self._control = control_tokens(self.texts, self.types)
        self.special_tokens: Mapping[str, int] = self._control.special

    def encode(self, text: str) -> list[int]:
        if "\x04" in text:
            raise Unencodable("\x04")
        return list(text.encode())

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        return encode_parsed(self._control, self.encode, text, guard)


def byte_tokenizer(*, adds_bos: bool = False) -> Tokenizer:
    """Return a tokenizer whose token ids are bytes."""
    return Tokenizer(ByteVocabulary(), bos_token_id=BOS, eos_token_ids=[EOS, IM_END], prefix_ids=[BOS] * adds_bos)


Script = Callable[[list[int], SamplingParams], Sequence[int]]


class FakeEngineClient:
    """An engine that says what its script says, one token each step, and remembers what was asked of it.

    `script` returns the tokens for a prompt; a stop token or max_tokens ends them, as in the engine. It can be made to
    hold back (`is_held`), to be not ready, and to die or to fail after some tokens.
    """

    def __init__(self, script: Script, *, config: EngineConfig | None = None, num_cached_tokens: int = 0) -> None:
        self.config = config or EngineConfig(num_blocks=64, max_model_len=512)
        self.is_ready = True
        self.fingerprint = "fp_fake"
        self.report: EngineReady | None = None
        self.state: EngineState = "loaded"
        self.stats = StepStats()
        self.listener = EngineListener()
        self.submitted: list[tuple[list[int], SamplingParams, str]] = []
        self.grammars: list[str] = []
        self.requests: list[Request] = []
        self.aborted: list[int] = []
        self.released = asyncio.Event()  # cleared: no token comes
        self.released.set()
        self.dies_after: int | None = None
        self.fails_after: int | None = None
        self.repeats_after: int | None = None  # an answer counts as repeating itself after this number of tokens
        self.preempts_after: int | None = None  # a sequence joins the batch again after this number of tokens
        self.refuses_grammar = False  # where it would fail
        self.seconds_per_token = 0.0
        self.logprob_of: dict[int, float] = {}  # of all tokens of an answer, by its first one; else -5
        self.logprob_after: Callable[[list[int], int], float] = lambda prompt, token_id: -float(token_id % 7 + 1)
        self.snapshot_period_seconds = 0.0
        self.num_produced = 0
        self._script = script
        self._num_cached_tokens = num_cached_tokens
        self._ids = itertools.count(1)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        if not self.is_ready:
            raise EngineUnavailable
        self.grammars.append(request.grammar)
        self.requests.append(request)
        self.submitted.append((request.prompt_token_ids, request.params, request.cache_salt))
        stream = OutputQueue(next(self._ids), self._abort)
        work = self._produce(stream, request.prompt_token_ids, request.params, request.pooling)
        self._tasks[stream.request_id] = asyncio.create_task(work)
        return stream

    def subscribe(self, period_seconds: float) -> None:
        self.snapshot_period_seconds = period_seconds

    @property
    def num_running(self) -> int:
        """Requests the engine still works on."""
        return sum(not task.done() for task in self._tasks.values())

    def _error(self) -> str:
        return "it is too complex" if self.refuses_grammar else "a secret of the engine"

    def _abort(self, request_id: int) -> None:
        self.aborted.append(request_id)
        self._tasks[request_id].cancel()

    async def _produce(
        self, stream: OutputQueue, prompt: list[int], params: SamplingParams, pooling: Pooling | None
    ) -> None:
        scheduled_at_seconds = time.monotonic()
        script = self._script(prompt, params)
        logprob = self.logprob_of.get(script[0], -5.0) if self.logprob_of else -5.0
        prompt_logprobs = [one for t in prompt[1:] for one in fake_logprobs(t, params.num_prompt_logprobs)]
        if params.max_tokens == 0:
            await self.released.wait()
            stream.put(
                SequenceOutput(
                    request_id=stream.request_id,
                    token_ids=[],
                    finish_reason="error" if self.fails_after == 0 else "length",
                    prompt_logprobs=prompt_logprobs,
                    embedding=fake_embedding(prompt, pooling),
                    num_cached_tokens=self._num_cached_tokens,
                    token_logprobs=[self.logprob_after(prompt, token_id) for token_id in params.logprob_token_ids],
                )
            )
            return
        for position, token_id in enumerate(script, start=1):
            await asyncio.sleep(self.seconds_per_token)
            await self.released.wait()
            if self.dies_after is not None and position > self.dies_after:
                stream.fail(EngineDied())
                return
            if position == self.preempts_after:
                scheduled_at_seconds = time.monotonic()
            finish_reason: FinishReason | None = None
            if self.fails_after is not None and position > self.fails_after:
                finish_reason = "error"
            elif token_id in params.stop_token_ids or position == self.repeats_after:
                finish_reason = "stop"
            elif position == params.max_tokens:
                finish_reason = "length"
            output = SequenceOutput(
                request_id=stream.request_id,
                token_ids=[] if finish_reason == "error" else [token_id],
                logprobs=fake_logprobs(token_id, params.num_logprobs, logprob),
                prompt_logprobs=prompt_logprobs if position == 1 else [],
                token_logprobs=[self.logprob_after(prompt, one) for one in params.logprob_token_ids if position == 1],
                finish_reason=finish_reason,
                num_cached_tokens=self._num_cached_tokens,
                scheduled_at_seconds=scheduled_at_seconds,
                stop_reason="repetition" if position == self.repeats_after else "",
                error=self._error() if finish_reason == "error" else None,
                error_kind="grammar" if self.refuses_grammar else "engine",
            )
            self.num_produced += len(output.token_ids)
            self.listener.on_step(StepOutput(outputs=[output], stats=StepStats(step=position, num_decode_tokens=1)))
            stream.put(output)
            if finish_reason is not None:
                return
        stream.fail(AssertionError("The script ends before a stop token and before max_tokens."))


def fake_logprobs(token_id: int, num_logprobs: int | None, logprob: float = -5.0) -> list[TokenLogprobs]:
    """Return plausible numbers: the tokens after `token_id` are the most probable ones, it is none of them."""
    if num_logprobs is None:
        return []
    return [
        TokenLogprobs(
            logprob=logprob,
            top_token_ids=[(token_id + offset) % 256 for offset in range(1, num_logprobs + 1)],
            top_logprobs=[-0.5 * offset for offset in range(1, num_logprobs + 1)],
        )
    ]


def fake_embedding(prompt: list[int], pooling: Pooling | None) -> list[float]:
    """Return three numbers that differ between prompts and poolings."""
    return [] if pooling is None else [float(len(prompt)), float(prompt[-1]), float(pooling == "last")]


def says(*texts: str) -> Script:
    """Return a script that answers every prompt with `texts`, in turn, each ended by EOS."""
    turns = itertools.cycle(texts)
    return lambda prompt, params: [*next(turns).encode(), EOS]


def echoes() -> Script:
    """Return a script that repeats the prompt for ever: a text that shows whose it is."""
    return lambda prompt, params: list(itertools.islice(itertools.cycle(prompt), params.max_tokens))
