"""One key's grammars that are slow, and its highest priority without end: what another key notices of them.

The engine runs in this process, with a tiny model and low limits, so that harmless grammars pass them.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from llguidance import LLMatcher

from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.scheduler.engine import Engine
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.grammar_limits import GrammarLimits
from caravan.scheduler.messages import Request
from tests.scheduler.requests import make_request
from tests.support.fakes import EOS, IM_END, byte_tokenizer
from tests.support.tiny_llama import tiny_engine, tiny_llama

NUM_WAITING = 24  # requests of the flood that are always there
MAX_NUM_SEQS = 8
WIDE = 2500  # alternatives of a slow grammar
LIMITS = GrammarLimits(start_seconds=0.015, mask_seconds=0.01)  # such a grammar takes several times that to compile

Flood = Callable[[int], Request]


@dataclass(frozen=True)
class Delays:
    """What came of requests for two tokens of another key, one after the other."""

    alone_seconds: list[float]
    seconds: list[float]  # beside the flood
    num_refused: int  # of the flood, with an error of the grammar
    num_finished: int  # of the flood, in another way

    @property
    def longest(self) -> float:
        """Seconds that the flood added at most."""
        return max(self.seconds) - sorted(self.alone_seconds)[len(self.alone_seconds) // 2]


def slow_grammars(request_id: int) -> Request:
    """Return a request with a grammar that nobody had before, with many alternatives."""
    words = [f"w{request_id}x{index}" for index in range(WIDE)]
    rules = "\n".join(f'r{index}: "{word}" "b"' for index, word in enumerate(words))
    lark = f'start: "a" x\nx: {" | ".join(f"r{index}" for index in range(WIDE))}\n{rules}'
    return _request(request_id, grammar=LLMatcher.grammar_from_lark(lark))


def highest_priority(request_id: int) -> Request:
    """Return a request that claims the lowest priority number there is."""
    return _request(request_id, priority=-1000)


def delays_of_another_key(flood: Flood, num_requests: int) -> Delays:
    """Return how long requests of another key take alone and beside a flood, half of them with a grammar of their own.

    The model computes with one thread: two that wait for each other would make these seconds those of a shared machine.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _delays(flood, num_requests)
    finally:
        torch.set_num_threads(num_threads)


def _delays(flood: Flood, num_requests: int) -> Delays:
    grammars = Grammars(lambda: grammar_tokenizer(byte_tokenizer().resized(300)), 2, LIMITS)
    engine = tiny_engine(tiny_llama(), grammars=grammars, num_blocks=256, max_num_seqs=MAX_NUM_SEQS, speculation="off")
    numbers = count(1)
    others = (_other(next(numbers), index) for index in count())
    next(_answers(engine, others, lambda: None))  # the first step takes longer
    alone = [next(_answers(engine, others, lambda: None)) for _ in range(num_requests)]
    inside: set[int] = set()
    reasons: dict[str, int] = {}

    def refill() -> None:
        while len(inside) < NUM_WAITING:
            request = flood(next(numbers))
            inside.add(request.request_id)
            engine.add(request)

    def take(request_id: int, reason: str) -> None:
        inside.discard(request_id)
        reasons[reason] = reasons.get(reason, 0) + 1

    answers = _answers(engine, others, refill, take)
    seconds = [next(answers) for _ in range(num_requests)]
    num_refused = reasons.pop("grammar", 0)
    return Delays(alone, seconds, num_refused, sum(reasons.values()))


def _answers(
    engine: Engine,
    others: Iterator[Request],
    refill: Callable[[], None],
    on_flood: Callable[[int, str], None] = lambda *_: None,
) -> Iterator[float]:
    """Yield the seconds from a request of the other key to its end, over and over."""
    for request in others:
        refill()
        for _ in range(20):  # the flood is at work
            _step(engine, on_flood, -1)
            refill()
        began = time.monotonic()
        engine.add(request)
        while not _step(engine, on_flood, request.request_id):
            refill()
        yield time.monotonic() - began


def _step(engine: Engine, on_flood: Callable[[int, str], None], awaited: int) -> bool:
    """Run a step; return whether the awaited request has ended, which it must do without an error."""
    has_ended = False
    for output in engine.step().outputs:
        if output.finish_reason is None:
            continue
        if output.request_id == awaited:
            assert output.finish_reason != "error", output.error
            has_ended = True
        else:
            is_grammar = output.error_kind == "grammar"
            on_flood(output.request_id, "grammar" if is_grammar else output.finish_reason)
    return has_ended


def _other(request_id: int, index: int) -> Request:
    grammar = LLMatcher.grammar_from_regex(f"[a-z]{{2}}{index}") if index % 2 else ""
    return make_request(request_id, [1, 2, 3, 4], key="other", grammar=grammar, max_tokens=2, temperature=1.0)


def _request(request_id: int, *, grammar: str = "", priority: int = 0) -> Request:
    return make_request(
        request_id,
        [5, 6, 7, 8],
        key="flood",
        grammar=grammar,
        priority=priority,
        max_tokens=24,
        temperature=1.0,
        stop_token_ids=(EOS, IM_END),
    )
