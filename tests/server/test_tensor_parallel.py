"""`caravan serve --tensor-parallel`: a server whose model is computed by several processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caravan import LLM, SamplingParams
from tests.support.running_server import RunningServer, is_alive, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

OPTIONS = ("--kv-cache-memory", "4MiB", "--num-threads", "1")
PROMPTS = [[*range(5, 105)], [*range(9, 60)], [3, 1, 4, 1, 5]]


def ask(server: RunningServer) -> list[Any]:
    """Return what the server answers to some prompts: texts, tokens, log-probabilities, and an embedding."""
    name = server.http.get("/v1/models").json()["data"][0]["id"]
    body = {"model": name, "max_tokens": 12, "logprobs": 2, "temperature": 0.9, "seed": 3, "return_token_ids": True}
    answers = [server.http.post("/v1/completions", json=body | {"prompt": prompt}).json() for prompt in PROMPTS]
    scored = server.http.post("/v1/completions", json=body | {"prompt": PROMPTS[1], "prompt_logprobs": 1}).json()
    embedding = server.http.post("/v1/embeddings", json={"model": name, "input": PROMPTS[0]}).json()
    return [*(answer["choices"] for answer in [*answers, scored]), embedding["data"]]


def test_ranks_answer_as_one_process_does_and_all_end_with_the_server(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, *OPTIONS) as server:
        expected = ask(server)
        assert 'num_ranks="1"' in server.metrics()
    with running_server(tiny_model_path, *OPTIONS, "--tensor-parallel", "3") as server:
        assert "Ranks    3 processes" in server.start_text
        pids = server.rank_pids()
        assert len(pids) == 3
        assert 'num_ranks="3"' in server.metrics()
        assert ask(server) == expected
        os.kill(pids[2], signal.SIGKILL)  # while nobody asks
        eventually(lambda: not any(map(is_alive, pids)))
        eventually(lambda: server.metric("engine_restarts_total") == 1, within_seconds=180)
        eventually(lambda: server.http.get("/readyz").status_code == 200, within_seconds=180)
        assert ask(server) == expected
        pids = server.rank_pids()
        assert len(pids) == 3
    eventually(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_no_rank_outlives_a_server_that_is_killed_or_interrupted(tiny_model_path: Path, end: signal.Signals) -> None:
    with running_server(tiny_model_path, *OPTIONS, "--tensor-parallel", "2", in_new_group=True) as server:
        pids = server.rank_pids()
        assert len(pids) == 2
        if end == signal.SIGINT:
            os.killpg(server.process.pid, end)  # as a terminal does
        else:
            server.process.kill()
        server.process.wait(60)
        eventually(lambda: not any(map(is_alive, pids)))


def refused(*options: str) -> str:
    """Return the error of a server that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "caravan", "serve", *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--standby",), "--standby cannot be combined with --tensor-parallel. Remove one of the options."),
        (("--kv-spill", "1MiB"), "--kv-spill cannot be combined with --tensor-parallel. Remove one of the options."),
        (("--tensor-parallel", "0"), "Invalid value '0' for --tensor-parallel"),
    ],
)
def test_what_ranks_cannot_have_is_an_error_at_once(
    tiny_model_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(str(tiny_model_path), "--tensor-parallel", "2", *options)


def test_more_ranks_than_heads_are_one_line(tiny_model_path: Path) -> None:
    error = refused(str(tiny_model_path), "--port", "0", "--tensor-parallel", "5")
    assert error.splitlines()[-1] == (
        f"Cannot serve {tiny_model_path}: A model with 4 query heads and hidden_size 64 can be split between at most "
        "4 ranks; there are 5."
    )


def test_an_llm_with_ranks_gives_the_same_answers_and_ends_them(tiny_model_path: Path) -> None:
    params = SamplingParams(temperature=0.9, seed=1, max_tokens=12, ignore_eos=True, logprobs=1)

    def answers(**options: Any) -> list[Any]:
        with LLM(tiny_model_path, kv_cache_memory="1MiB", num_threads=1, **options) as llm:
            texts = [result.choices for result in llm.generate(PROMPTS, params)]
            pids = getattr(getattr(llm.engine.model, "ranks", None), "pids", [])
        assert len(pids) == options.get("tensor_parallel", 1) - 1
        eventually(lambda: not any(map(is_alive, pids)))
        return texts

    assert answers(tensor_parallel=2) == answers()
    with pytest.raises(ValueError, match="between at most 4 ranks; there are 5"):
        LLM(tiny_model_path, tensor_parallel=5)
