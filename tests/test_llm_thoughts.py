"""LLM and models that think: the thought beside the text, as the server returns it, whole and streamed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caravan import LLM, SamplingParams, StreamDelta
from tests.model.vocabularies import UNMERGED_TEXT, gpt2_metadata, metadata_list
from tests.support.gguf_files import write_tiny_llama
from tests.support.running_server import RunningServer, running_server
from tests.support.thinking import DEEPSEEK_R1, QWEN_3

pytestmark = pytest.mark.slow

CONVERSATION = [{"role": "user", "content": "two and two"}]
CLOSING_ID = metadata_list(gpt2_metadata(), "tokens").index(UNMERGED_TEXT)  # becomes </think>
# A random model closes its thought after some tokens, and writes the mark again into its text.
PARAMETERS: list[dict[str, Any]] = [
    {"seed": seed, "temperature": 1, "max_tokens": 40, "ignore_eos": True, "logit_bias": {CLOSING_ID: 4}}
    for seed in range(4)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose closing mark is a special token, and templates of models that think."""
    folder = tmp_path_factory.mktemp("thinking")
    tokens, types = (metadata_list(gpt2_metadata(), name) for name in ("tokens", "token_type"))
    tokens[CLOSING_ID], types[CLOSING_ID] = "</think>", 3
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    write_tiny_llama(folder / "tiny.gguf", metadata=fields)
    (folder / "r1.jinja").write_text(DEEPSEEK_R1)
    (folder / "qwen.jinja").write_text(QWEN_3)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder / "tiny.gguf", chat_template=folder / "r1.jinja", kv_cache_memory="1MiB") as llm:
        yield llm


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    options = ["--chat-template", str(folder / "r1.jinja"), "--kv-cache-memory", "1MiB"]
    with running_server(folder / "tiny.gguf", *options) as running:
        yield running


def test_thoughts_and_texts_are_those_of_the_server(llm: LLM, server: RunningServer) -> None:
    lengths = set()
    for parameters in PARAMETERS:
        body = {"model": "tiny", "messages": CONVERSATION, "logprobs": True, "return_token_ids": True} | parameters
        (expected,) = server.http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"]
        (result,) = llm.chat(CONVERSATION, SamplingParams(logprobs=0, **parameters))
        assert result.reasoning == (expected["message"].get("reasoning") or "")
        assert result.text == expected["message"]["content"]
        (choice,) = result.choices
        assert list(choice.token_ids) == expected["token_ids"]
        assert choice.logprobs is not None
        entries = [*(expected["logprobs"].get("reasoning") or []), *expected["logprobs"]["content"]]
        assert [one.logprob for one in choice.logprobs] == [entry["logprob"] for entry in entries]
        lengths.add((bool(result.reasoning), bool(result.text)))
    assert (True, True) in lengths


def test_the_deltas_of_a_thought_joined_are_the_thought(llm: LLM) -> None:
    async def streamed(params: SamplingParams) -> list[StreamDelta]:
        return [delta async for delta in llm.astream(CONVERSATION, params)]

    for parameters in PARAMETERS:
        params = SamplingParams(logprobs=1, **parameters)
        (whole,) = llm.chat(CONVERSATION, params)
        deltas = list(llm.stream(CONVERSATION, params))
        assert deltas == asyncio.run(streamed(params))
        assert "".join(delta.reasoning for delta in deltas) == whole.reasoning
        assert "".join(delta.text for delta in deltas) == whole.text
        assert tuple(one for delta in deltas for one in delta.logprobs or ()) == whole.choices[0].logprobs
        is_text = [bool(delta.text) for delta in deltas if delta.text or delta.reasoning]
        assert is_text == sorted(is_text), "a thought comes after the text"


def test_a_prompt_that_is_no_conversation_has_no_thought(llm: LLM) -> None:
    (result,) = llm.generate("<think>two and two", SamplingParams(**PARAMETERS[0]))
    assert result.reasoning == ""
    assert "</think>" in result.text


def test_variables_of_the_template_switch_thinking_off(folder: Path) -> None:
    params = SamplingParams(**PARAMETERS[0])
    off = {"enable_thinking": False}
    with LLM(folder / "tiny.gguf", chat_template=folder / "qwen.jinja", kv_cache_memory="1MiB") as llm:
        (free,) = llm.chat(CONVERSATION, params)
        (result,) = llm.chat(CONVERSATION, params, chat_template_kwargs=off)
        (later,) = asyncio.run(llm.achat(CONVERSATION, params, chat_template_kwargs=off))
        deltas = list(llm.stream(CONVERSATION, params, chat_template_kwargs=off))
        assert result.num_prompt_tokens > free.num_prompt_tokens  # the empty thought
        assert result.reasoning == ""
        assert result.choices == later.choices
        assert "".join(delta.text for delta in deltas) == result.text


def test_wrong_variables_are_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match="messages"):
        llm.chat(CONVERSATION, chat_template_kwargs={"messages": "x"})
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        llm.chat(CONVERSATION, chat_template_kwargs=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this prompt is none"):
        llm.stream("hello", chat_template_kwargs={"enable_thinking": False})
