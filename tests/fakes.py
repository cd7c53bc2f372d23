"""Stand-ins for the parts of the server that are slow or large: a tokenizer of bytes and an engine with a script."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

from model.sampling_params import SamplingParams
from scheduler.config import EngineConfig
from scheduler.messages import FinishReason, SequenceOutput, StepOutput, StepStats, TokenLogprobs
from server.token_stream import EngineDied, EngineUnavailable, TokenStream

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259


class UnencodableCharacter(ValueError):
    """The vocabulary has no token for it."""


class ByteTokenizer:
    """One token for each byte, then <s>, </s>, <|im_start|> and <|im_end|>; U+0004 cannot be encoded."""

    def __init__(self, *, adds_bos: bool = False) -> None:
        self.vocab_size = 260
        self.bos_token_id: int | None = BOS
        self.eos_token_ids = frozenset({EOS, IM_END})
        self.special_tokens = {"<s>": BOS, "</s>": EOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
        self.bos_token = "<s>"
        self.eos_token = "</s>"
        self.chat_template: str | None = None
        self._adds_bos = adds_bos

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False, guard: str = ""
    ) -> list[int]:
        if "\x04" in text:
            raise UnencodableCharacter("the vocabulary has no token for '\\x04'")
        token_ids = [BOS] if add_special_tokens and self._adds_bos else []
        while text:
            special = next((name for name in self.special_tokens if parse_special and text.startswith(name)), None)
            if special is not None:
                token_ids.append(self.special_tokens[special])
                text = text[len(special) :]
            else:
                token_ids += b"" if text[0] == guard else text[0].encode()
                text = text[1:]
        return token_ids

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return next(name for name, special_id in self.special_tokens.items() if special_id == token_id).encode()

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        kept = [token_id for token_id in token_ids if not (skip_special and self.is_special(token_id))]
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")


Script = Callable[[list[int], SamplingParams], Sequence[int]]


class FakeEngineClient:
    """An engine that says what its script says, one token each step, and remembers what was asked of it.

    `script` returns the tokens for a prompt; an EOS token or max_tokens ends them, as in the engine. It can be told to
    hold back (`is_held`), to be not ready, and to die or to fail after some tokens.
    """

    def __init__(self, script: Script, *, config: EngineConfig | None = None, num_cached_tokens: int = 0) -> None:
        self.config = config or EngineConfig(num_blocks=64, max_model_len=512)
        self.is_ready = True
        self.stats = StepStats()
        self.on_step: Callable[[StepOutput], None] = lambda _: None
        self.submitted: list[tuple[list[int], SamplingParams, str]] = []
        self.aborted: list[int] = []
        self.released = asyncio.Event()  # cleared: no token comes
        self.released.set()
        self.dies_after: int | None = None
        self.fails_after: int | None = None
        self.seconds_per_token = 0.0
        self.num_produced = 0
        self._script = script
        self._num_cached_tokens = num_cached_tokens
        self._ids = itertools.count(1)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def submit(self, prompt_token_ids: list[int], params: SamplingParams, cache_salt: str = "") -> TokenStream:
        if not self.is_ready:
            raise EngineUnavailable
        self.submitted.append((prompt_token_ids, params, cache_salt))
        stream = TokenStream(next(self._ids), self._abort)
        self._tasks[stream.request_id] = asyncio.create_task(self._produce(stream, prompt_token_ids, params))
        return stream

    @property
    def num_running(self) -> int:
        """Requests the engine still works on."""
        return sum(not task.done() for task in self._tasks.values())

    def _abort(self, request_id: int) -> None:
        self.aborted.append(request_id)
        self._tasks[request_id].cancel()

    async def _produce(self, stream: TokenStream, prompt: list[int], params: SamplingParams) -> None:
        scheduled_at_seconds = time.monotonic()
        for position, token_id in enumerate(self._script(prompt, params), start=1):
            await asyncio.sleep(self.seconds_per_token)
            await self.released.wait()
            if self.dies_after is not None and position > self.dies_after:
                stream.fail(EngineDied())
                return
            finish_reason: FinishReason | None = None
            if self.fails_after is not None and position > self.fails_after:
                finish_reason = "error"
            elif not params.ignore_eos and token_id in {EOS, IM_END, *params.stop_token_ids}:
                finish_reason = "stop"
            elif position == params.max_tokens:
                finish_reason = "length"
            output = SequenceOutput(
                request_id=stream.request_id,
                token_ids=[] if finish_reason == "error" else [token_id],
                logprobs=fake_logprobs(token_id, params.num_logprobs),
                finish_reason=finish_reason,
                num_cached_tokens=self._num_cached_tokens,
                scheduled_at_seconds=scheduled_at_seconds,
                error="a secret of the engine" if finish_reason == "error" else None,
            )
            self.num_produced += len(output.token_ids)
            self.on_step(StepOutput(outputs=[output], stats=StepStats(step=position, num_decode_tokens=1)))
            stream.put(output)
            if finish_reason is not None:
                return


def fake_logprobs(token_id: int, num_logprobs: int | None) -> list[TokenLogprobs]:
    """Return plausible numbers: the tokens after `token_id` are the most probable ones, it is none of them."""
    if num_logprobs is None:
        return []
    return [
        TokenLogprobs(
            logprob=-5.0,
            top_token_ids=[(token_id + offset) % 256 for offset in range(1, num_logprobs + 1)],
            top_logprobs=[-0.5 * offset for offset in range(1, num_logprobs + 1)],
        )
    ]


def says(*texts: str) -> Script:
    """Return a script that answers every prompt with `texts`, in turn, each ended by EOS."""
    turns = itertools.cycle(texts)
    return lambda prompt, params: [*next(turns).encode(), EOS]


def echoes() -> Script:
    """Return a script that repeats the prompt for ever: a text that shows whose it is."""
    return lambda prompt, params: itertools.islice(itertools.cycle(prompt), params.max_tokens)  # type: ignore[return-value]
