"""Requests with grammars over a vocabulary of bytes, and engines that take them."""

from functools import cache
from typing import Any

from llguidance import LLMatcher

from caravan.model.attention.cpu import CpuAttention
from caravan.model.cpu.build import load_kernels
from caravan.model.llama import Llama
from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.scheduler.engine import Engine
from caravan.scheduler.grammar import Grammars, Matcher, wait_for
from caravan.scheduler.grammar_limits import GrammarLimits
from caravan.scheduler.messages import Request
from tests.scheduler.requests import make_request
from tests.support.fakes import EOS, IM_END, byte_tokenizer
from tests.support.tiny_llama import tiny_engine, tiny_llama

PROMPT = [1, 2, 3, 4]
LETTERS = LLMatcher.grammar_from_regex("[a-z]{3}(, [a-z]{3}){2}")


@cache
def model() -> Llama:
    return tiny_llama(make_model=lambda config: Llama(config, CpuAttention(load_kernels())))


def grammars(**limits: Any) -> Grammars:
    return Grammars(lambda: grammar_tokenizer(byte_tokenizer().resized(300)), 2, GrammarLimits(**limits))


def ready(matcher: Matcher) -> Matcher:
    wait_for([matcher], 20.0)
    assert matcher.is_ready
    return matcher


def constrained_engine(made: Grammars | None = None, **limits: Any) -> Engine:
    return tiny_engine(
        model(), grammars=made or grammars(), **{"num_blocks": 512, "block_size": 16, "max_model_len": 512} | limits
    )


def constrained(request_id: int, grammar: str, **params: Any) -> Request:
    defaults: dict[str, Any] = {"temperature": 1.0, "seed": request_id, "max_tokens": 480}
    sampling = defaults | {"stop_token_ids": (EOS, IM_END)} | params
    return make_request(request_id, PROMPT, grammar=grammar, **sampling)
