"""LLM: the answers of the server without HTTP, batches, streams in both forms, errors, and what an import costs."""

import _thread
import asyncio
import gc
import inspect
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from caravan import LLM, GenerationResult, SamplingParams
from caravan.offline.results import Prompt
from caravan.server.settings import Settings
from tests.support.running_server import RunningServer, running_server
from tests.support.served_checkpoints import huggingface
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
CONVERSATION = [{"role": "user", "content": "hello 世界"}]


@pytest.fixture(scope="module")
def llm(tiny_model_path: Path) -> Iterator[LLM]:
    with LLM(tiny_model_path, kv_cache_memory="1MiB", speculation="off") as llm:
        yield llm


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--kv-cache-memory", "1MiB") as running:
        yield running


def is_idle(llm: LLM) -> bool:
    stats = llm.stats()
    return (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)


def answered(server: RunningServer, path: str, **body: Any) -> Any:
    response = server.http.post(path, json={"model": "tiny", "return_token_ids": True} | body)
    assert response.status_code == 200, response.text
    return response.json()


PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 0, "max_tokens": 40},
    {"temperature": 0},
    {"seed": 7, "n": 3, "max_tokens": 30, "ignore_eos": True},
    {"seed": 1, "max_tokens": 30, "temperature": 1.7, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    {"seed": 2, "max_tokens": 60, "stop": ["e", "or "], "min_tokens": 3, "include_stop_str_in_output": True},
    {"temperature": 0, "max_tokens": 30, "presence_penalty": 1.5, "frequency_penalty": 1, "repetition_penalty": 1.2},
    {"seed": 3, "max_tokens": 30, "logit_bias": {65: 50, 66: 50}, "stop_token_ids": [66]},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=",".join)
def test_completions_are_those_of_the_server_to_the_last_bit(
    llm: LLM, server: RunningServer, parameters: dict[str, Any]
) -> None:
    prompts = ["hello", "naïve 世界 👩‍👩‍👧", "a much longer prompt " * 8]
    over_http = answered(server, "/v1/completions", prompt=prompts, logprobs=2, **parameters)
    results = llm.generate(prompts, SamplingParams(logprobs=2, **parameters))
    choices = [choice for result in results for choice in result.choices]
    assert len(choices) == len(over_http["choices"]) == 3 * parameters.get("n", 1)
    for choice, expected in zip(choices, over_http["choices"], strict=True):
        assert choice.text == expected["text"]
        assert list(choice.token_ids) == expected["token_ids"]
        assert choice.finish_reason == expected["finish_reason"]
        assert choice.logprobs is not None
        assert [one.logprob for one in choice.logprobs] == expected["logprobs"]["token_logprobs"]
        assert [one.text for one in choice.logprobs] == expected["logprobs"]["tokens"]
        for one, top in zip(choice.logprobs, expected["logprobs"]["top_logprobs"], strict=True):
            assert {other.logprob for other in one.top} <= set(top.values())
    assert sum(result.num_prompt_tokens for result in results) == over_http["usage"]["prompt_tokens"]
    assert sum(result.num_completion_tokens for result in results) == over_http["usage"]["completion_tokens"]
    assert [list(result.prompt_token_ids) for result in results] == over_http["prompt_token_ids"]


@pytest.mark.parametrize("parameters", [{"temperature": 0}, {"seed": 5, "n": 2, "max_tokens": 20}])
def test_chats_are_those_of_the_server_to_the_last_bit(
    llm: LLM, server: RunningServer, parameters: dict[str, Any]
) -> None:
    over_http = answered(server, "/v1/chat/completions", messages=CONVERSATION, logprobs=True, **parameters)
    (result,) = llm.chat(CONVERSATION, SamplingParams(logprobs=0, **parameters))
    assert list(result.prompt_token_ids) == over_http["prompt_token_ids"]
    for choice, expected in zip(result.choices, over_http["choices"], strict=True):
        assert choice.text == expected["message"]["content"]
        assert list(choice.token_ids) == expected["token_ids"]
        assert choice.finish_reason == expected["finish_reason"]
        assert choice.logprobs is not None
        assert [one.logprob for one in choice.logprobs] == [one["logprob"] for one in expected["logprobs"]["content"]]


def test_log_probabilities_of_a_prompt_are_those_of_the_server(llm: LLM, server: RunningServer) -> None:
    body = {"prompt": "hello world", "max_tokens": 0, "prompt_logprobs": 1}
    over_http = answered(server, "/v1/completions", **body)["choices"][0]["prompt_logprobs"]
    (result,) = llm.generate("hello world", SamplingParams(max_tokens=0, prompt_logprobs=1))
    assert result.text == ""
    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is over_http[0] is None
    for one, expected in zip(result.prompt_logprobs[1:], over_http[1:], strict=True):
        assert one is not None
        assert expected[str(one.token_id)]["logprob"] == one.logprob


def test_a_draft_model_changes_no_answer(llm: LLM, tiny_model_path: Path) -> None:
    params = [GREEDY, SamplingParams(temperature=1.2, seed=3, max_tokens=40, logprobs=2, ignore_eos=True)]
    with LLM(tiny_model_path, draft_model=tiny_model_path, kv_cache_memory="2MiB") as drafting:
        results = drafting.generate(["hello", "the numbers"], params)
        assert len(drafting.engine.kv_caches) == 2
    assert [result.choices for result in results] == [r.choices for r in llm.generate(["hello", "the numbers"], params)]
    with pytest.raises(ValueError, match="--draft-model needs --speculation auto"):
        LLM(tiny_model_path, draft_model=tiny_model_path, speculation="off")


def test_what_the_model_suggests_holds_where_the_parameters_say_nothing(tmp_path: Path) -> None:
    with LLM(huggingface(tmp_path), kv_cache_memory="1MiB") as llm:  # its file says temperature 0
        (suggested,) = llm.generate("hello", SamplingParams(max_tokens=20, seed=1))
        (greedy,) = llm.generate("hello", SamplingParams(max_tokens=20, temperature=0))
        (drawn,) = llm.generate("hello", SamplingParams(max_tokens=20, seed=1, temperature=1.5))
    assert suggested.choices == greedy.choices != drawn.choices


def test_many_prompts_wait_for_a_place_and_are_answered_in_their_order(llm: LLM) -> None:
    prompts = [f"number {number}" for number in range(500)]
    params = [SamplingParams(seed=number, max_tokens=1 + number % 5) for number in range(500)]
    results = llm.generate(prompts, params)
    assert [result.prompt for result in results] == prompts
    assert [result.num_completion_tokens for result in results[:5]] == [1, 2, 3, 4, 5]
    for number in (0, 123, 499):
        assert llm.generate(prompts[number], params[number])[0].choices == results[number].choices
    assert is_idle(llm)


def test_token_ids_are_a_prompt_and_lists_of_them_are_several(llm: LLM) -> None:
    (text,) = llm.generate("hello", GREEDY)
    ids = list(text.prompt_token_ids)
    assert [result.choices for result in llm.generate(ids, GREEDY)] == [text.choices]
    mixed: list[Prompt] = [ids, "hello", tuple(ids)]  # those of a result are a tuple
    assert [result.choices for result in llm.generate(mixed, GREEDY)] == [text.choices] * 3
    assert not llm.generate([], GREEDY)
    assert not llm.chat([], GREEDY)


def test_several_conversations_have_several_results(llm: LLM) -> None:
    other = [{"role": "system", "content": "short"}, *CONVERSATION]
    assert [result.prompt for result in llm.chat([CONVERSATION, other], GREEDY)] == [CONVERSATION, other]
    (alone,) = llm.chat(other, GREEDY)
    assert llm.chat([CONVERSATION, other], GREEDY)[1].choices == alone.choices


def test_a_prefix_that_was_computed_is_found_again(llm: LLM) -> None:
    prompt = "a prefix of several blocks, which is computed once " * 2
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens >= 32


@pytest.mark.parametrize("prompt", ["hello", [104, 101], CONVERSATION], ids=["text", "token ids", "conversation"])
def test_the_deltas_of_a_stream_joined_are_the_result(llm: LLM, prompt: Any) -> None:
    params = SamplingParams(seed=4, n=2, max_tokens=50, stop=["or "], logprobs=1)
    (whole,) = llm.chat(prompt, params) if prompt is CONVERSATION else llm.generate(prompt, params)
    deltas = list(llm.stream(prompt, params))
    for choice in whole.choices:
        own = [delta for delta in deltas if delta.choice == choice.index]
        assert "".join(delta.text for delta in own) == choice.text
        assert tuple(token_id for delta in own for token_id in delta.token_ids) == choice.token_ids
        assert tuple(one for delta in own for one in delta.logprobs or ()) == choice.logprobs
        assert [delta.finish_reason for delta in own] == [None] * (len(own) - 1) + [choice.finish_reason]


def test_nothing_changes_between_two_deltas(llm: LLM) -> None:
    stream = llm.stream("hello", LONG)
    assert is_idle(llm)  # nobody has read it yet
    next(stream)
    before = llm.stats()
    assert before.num_running == 1
    assert before.num_used_blocks > 0
    assert llm.engine.scheduler.running[0].num_output_tokens == 1
    assert llm.stats() == before
    next(stream)
    assert llm.stats().step == before.step + 1
    stream.close()


def test_a_stream_that_is_left_frees_its_blocks(llm: LLM) -> None:
    for _ in llm.stream("hello", LONG):
        break
    assert is_idle(llm)


def test_ctrl_c_ends_a_batch_between_two_steps(llm: LLM) -> None:
    (before,) = llm.generate("hello", GREEDY)
    gc.collect()  # an interrupt during the __del__ of what other tests left is lost: Python only prints it
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["hello"] * 500, LONG)
    timer.join()
    assert is_idle(llm)
    llm.engine.scheduler.pool.check()
    assert llm.generate("hello", GREEDY)[0].choices == before.choices


async def test_async_forms_give_the_same(llm: LLM) -> None:
    assert [one.choices for one in await llm.agenerate(["hello", "world"], GREEDY)] == [
        one.choices for one in llm.generate(["hello", "world"], GREEDY)
    ]
    assert (await llm.achat(CONVERSATION, GREEDY))[0].text == llm.chat(CONVERSATION, GREEDY)[0].text
    texts = [delta.text async for delta in llm.astream("hello", GREEDY)]
    assert texts == [delta.text for delta in llm.stream("hello", GREEDY)]


async def test_two_async_streams_share_the_batch(llm: LLM) -> None:
    async def read(prompt: str) -> int:
        return sum([len(delta.token_ids) async for delta in llm.astream(prompt, LONG)])

    first_step = llm.stats().step
    assert sum(await asyncio.gather(read("hello"), read("world"))) == 800
    assert llm.stats().step - first_step < 420


async def test_an_async_stream_that_is_left_frees_its_blocks(llm: LLM) -> None:
    async for _ in llm.astream("hello", LONG):
        break
    async with asyncio.timeout(60):
        while not is_idle(llm):
            await asyncio.sleep(0.01)


async def test_a_task_that_is_cancelled_disturbs_no_other(llm: LLM) -> None:
    (expected,) = llm.generate("world", LONG)
    cancelled = asyncio.create_task(llm.agenerate(["hello"] * 20, LONG))
    other = asyncio.create_task(llm.agenerate("world", LONG))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (await other)[0].choices == expected.choices
    assert is_idle(llm)


def test_threads_may_share_an_engine(llm: LLM) -> None:
    expected = [llm.generate(f"thread {number}", GREEDY)[0].choices for number in range(4)]
    found: dict[int, list[GenerationResult]] = {}

    def work(number: int) -> None:
        found[number] = llm.generate([f"thread {number}"] * 20, GREEDY)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [result.choices for result in found[number]] == [expected[number]] * 20


def test_a_step_that_fails_is_an_error_and_the_engine_goes_on(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("a fault")

    monkeypatch.setattr(llm.engine.model, "hidden_states", fail)
    with pytest.raises(RuntimeError, match="The engine failed on choice 0"):
        llm.generate("something that is in no cache", GREEDY)
    monkeypatch.undo()
    assert is_idle(llm)
    assert llm.generate("something that is in no cache", GREEDY)[0].num_completion_tokens == 12


MIXED: list[Prompt] = ["a", [3, 999]]
WRONG: list[tuple[Callable[[LLM], object], str]] = [
    (lambda llm: llm.generate(""), "`prompts` is empty"),
    (lambda llm: llm.generate(MIXED), r"`prompts\[1\]` has the token id 999; it must be from 0 to"),
    (lambda llm: llm.generate(["a", "a" * 600]), r"`prompts\[1\]`: This model's maximum context length is 512 tokens"),
    (lambda llm: llm.generate("a", SamplingParams(max_tokens=600)), "`prompts`: .* 601 tokens"),
    (lambda llm: llm.generate("a\ud800"), "`prompts` cannot be encoded"),
    (lambda llm: llm.generate(b"hello"), "`prompts` must be a text, a list of token ids"),
    (lambda llm: llm.generate(5), "`prompts` must be a text, a list of token ids"),  # type: ignore[arg-type]
    (lambda llm: llm.generate(["a", "b"], [GREEDY]), "`sampling_params` has 1 items for 2 prompts"),
    (lambda llm: llm.generate("a", {"n": 2}), "`sampling_params` must be SamplingParams"),  # type: ignore[arg-type]
    (lambda llm: llm.generate("a", SamplingParams(stop_token_ids=[999])), "`stop_token_ids` has the token id 999"),
    (lambda llm: llm.chat([{"role": "boss", "content": "a"}]), r"`messages\[0\].role` is \"boss\"; it must be"),
    (lambda llm: llm.chat([CONVERSATION, [{"role": "user"}]]), r"`messages\[1\]`: `messages\[0\].content` is missing"),
    (lambda llm: llm.chat("hello"), "`messages` must be a list of messages"),  # type: ignore[arg-type]
    (lambda llm: llm.chat([*CONVERSATION, "hello"]), "`messages` must be a list of messages"),  # type: ignore[arg-type]
    (lambda llm: llm.chat([[]]), "`messages` is"),
    (lambda llm: llm.stream(["a", "b"]), "`prompt` has 2 prompts; a stream can have only one"),  # type: ignore[arg-type]
    (lambda llm: llm.stream(""), "`prompt` is empty"),
    (lambda llm: llm.astream(""), "`prompt` is empty"),
    (lambda llm: llm.stream("a", SamplingParams(prompt_logprobs=1)), "`prompt_logprobs` cannot be streamed"),
    (lambda _: SamplingParams(temperature=3), "`temperature` is 3; it must be at most 2"),
    (lambda _: SamplingParams(max_tokens=0), "`max_tokens` is 0"),
    (lambda _: SamplingParams(n=0), "`n` is 0; it must be at least 1"),
    (lambda _: SamplingParams(stop=3), "`stop` is 3; it must be a string"),  # type: ignore[arg-type]
    (lambda _: SamplingParams(top_p={1}), r"`top_p` is \{1\}"),  # type: ignore[arg-type]
    (lambda _: SamplingParams(logit_bias={1: 1000}), "`logit_bias`"),
    (lambda llm: llm.chat([{"role": "user", "content": Path("x")}]), "has the wrong type"),
    (lambda _: LLM("./no/such.gguf"), "There is no file or folder"),
    (lambda _: LLM(dtype="float7"), "Invalid value 'float7' for `dtype`: it should be"),  # type: ignore[arg-type]
    (lambda _: LLM(block_size=0), "Invalid value '0' for `block_size`: it should be greater"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_argument_is_a_value_error_that_names_it(llm: LLM, call: Callable[[LLM], object], message: str) -> None:
    step = llm.stats().step
    with pytest.raises(ValueError, match=message):
        call(llm)
    assert llm.stats().step == step
    assert is_idle(llm)


def test_an_option_that_does_not_exist_is_an_error_that_names_it() -> None:
    with pytest.raises(TypeError, match="max_model_length"):
        LLM(max_model_length=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1)  # type: ignore[call-arg]


def test_a_model_that_cannot_be_loaded_is_a_value_error(tiny_model_path: Path) -> None:
    with pytest.raises(ValueError, match="max_model_len is 9999, but the model was trained for 512"):
        LLM(tiny_model_path, max_model_len=9999)


def test_a_field_of_a_message_without_effect_is_a_warning(llm: LLM) -> None:
    with pytest.warns(UserWarning, match="name` has no effect") as caught:
        llm.chat([{"role": "user", "content": "a", "name": "Ada"}], GREEDY)
    assert caught[0].filename == __file__


def test_options_and_their_defaults_are_those_of_the_server() -> None:
    parameters = inspect.signature(LLM).parameters
    assert {*parameters} <= {*Settings.model_fields}
    assert {*parameters} >= {"model", "dtype", "quantization", "kv_cache_dtype", "max_model_len", "num_threads"}
    for name, parameter in parameters.items():
        assert parameter.default == Settings.model_fields[name].default, name


def test_variables_of_a_server_mean_nothing(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAVAN_MAX_MODEL_LEN", "64")
    with LLM(tiny_model_path, kv_cache_memory="1MiB") as llm:
        assert llm.max_model_len == 512


def test_a_closed_one_says_so_and_gives_its_memory_back(tiny_model_path: Path) -> None:
    llm = LLM(tiny_model_path, kv_cache_memory="1MiB")
    stream = llm.stream("hello", LONG)
    next(stream)
    llm.close()
    llm.close()
    for call in (lambda: llm.generate("hello"), lambda: next(stream), llm.stats, lambda: llm.engine):
        with pytest.raises(RuntimeError, match="The engine is closed"):
            call()


def test_one_that_is_no_longer_used_is_gone_with_its_engine(tiny_model_path: Path) -> None:
    llm = LLM(tiny_model_path, kv_cache_memory="1MiB")
    llm.generate("hello", GREEDY)
    engine, threads = weakref.ref(llm.engine), threading.active_count()
    del llm
    gc.collect()
    assert engine() is None
    eventually(lambda: threading.active_count() < threads)


IMPORTS = """
import os, sys
import caravan
assert caravan.__version__
assert "LLM" in dir(caravan)
heavy = {"torch", "pydantic", "fastapi", "asyncio", "caravan.offline.llm"} & set(sys.modules)
assert not heavy, heavy
from caravan import LLM, SamplingParams
assert "torch" not in sys.modules
LLM(sys.argv[1], kv_cache_memory="1MiB").generate("hello", SamplingParams(max_tokens=1))  # not closed
assert os.environ["GOMP_SPINCOUNT"] == "1000"
"""


def test_importing_the_package_loads_nothing_and_a_program_ends_by_itself(tiny_model_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", IMPORTS, str(tiny_model_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_none_leaves_stop_strings_and_tokens_to_the_model() -> None:
    params = SamplingParams(stop=None, stop_token_ids=None)  # type: ignore[arg-type]
    assert (params.request.stop, params.request.stop_token_ids) == ([], [])
