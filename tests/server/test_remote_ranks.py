"""`caravan rank`: processes that join a server over the network, here over the loopback interface."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.engine_faults import fault_campaign
from tests.campaign.streams import short_bodies
from tests.support.extent import only_in_full
from tests.support.gguf_files import write_tiny_llama
from tests.support.joining_ranks import free_address, joining_process, rank_pid, secret_file
from tests.support.running_server import RunningServer, is_alive, running_server
from tests.support.tiny_llama import tiny_llama
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

OPTIONS = ("--kv-cache-memory", "4MiB", "--num-threads", "1", "--served-model-name", "smollm2")
PROMPTS = [[*range(5, 105)], [*range(9, 60)], [3, 1, 4, 1, 5]]


def remote_options(address: str, secret: Path, num_ranks: int = 2, num_remote: int = 1) -> tuple[str, ...]:
    return (
        *OPTIONS,
        *("--tensor-parallel", f"{num_ranks}", "--remote-ranks", f"{num_remote}"),
        *("--rank-address", address, "--rank-secret-file", str(secret)),
    )


def ask(server: RunningServer) -> list[Any]:
    """Return what the server answers to some prompts: texts, tokens and log-probabilities."""
    body = {"model": "smollm2", "max_tokens": 12, "logprobs": 2, "temperature": 0.9, "seed": 3}
    body |= {"return_token_ids": True}
    return [server.http.post("/v1/completions", json=body | {"prompt": one}).json()["choices"] for one in PROMPTS]


def test_ranks_that_join_answer_as_one_process_does(tiny_model_path: Path, tmp_path: Path) -> None:
    with running_server(tiny_model_path, *OPTIONS) as server:
        expected = ask(server)
    address, secret = free_address(), secret_file(tmp_path)
    with ExitStack() as stack:
        ranks = [stack.enter_context(joining_process(tiny_model_path, address, secret)) for _ in range(2)]
        with running_server(tiny_model_path, *remote_options(address, secret, 4, 2)) as server:
            assert "Ranks    4 processes" in server.start_text
            assert 'num_ranks="4"' in server.metrics()
            assert len(server.rank_pids()) == 2  # on this host
            assert ask(server) == expected
            pids = [rank_pid(one) for one in ranks]
            assert all(pid is not None and is_alive(pid) for pid in pids)
        eventually(lambda: not any(pid is not None and is_alive(pid) for pid in pids))
        assert [one.poll() for one in ranks] == [None, None]  # they wait for the next engine


@only_in_full()  # tests/campaign/test_rank_faults.py kills ranks of this machine
async def test_killed_ranks_that_join_again_lose_no_requests_and_change_no_output(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    address, secret = free_address(), secret_file(tmp_path)
    with (
        joining_process(tiny_model_path, address, secret) as joining,
        running_server(tiny_model_path, *remote_options(address, secret)) as server,
    ):

        def remote_rank(_: RunningServer) -> list[int]:
            pid = rank_pid(joining)
            assert pid is not None
            return [pid]

        report = await fault_campaign(
            server, num_kills=2, num_stops=0, seed=1, bodies=short_bodies(8), victims=remote_rank
        )
        assert report.wrong == []
        assert report.num_answers >= 8
        assert server.metric("engine_restarts_total") == 2


def test_threat_38_a_rank_with_another_secret_or_model_ends_with_one_line(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    address, secret = free_address(), secret_file(tmp_path)
    write_tiny_llama(other := tmp_path / "other.gguf", model=tiny_llama(seed=9, hidden_size=64, vocab_size=278))
    with (
        joining_process(tiny_model_path, address, secret_file(tmp_path, b"one of another cluster")) as stranger,
        joining_process(other, address, secret) as other_model,
        joining_process(tiny_model_path, address, secret),
        running_server(tiny_model_path, *remote_options(address, secret)) as server,
    ):
        assert len(ask(server)) == len(PROMPTS)
        for process, words in ((stranger, "has another secret"), (other_model, "refuses this rank. The rank differs")):
            # One that came too late, when all ranks were there, waits for the next engine.
            if process.poll() is not None:
                assert process.returncode == 1
                assert process.stderr is not None
                (line,) = process.stderr.read().splitlines()
                assert words in line


def test_an_interrupted_program_ends_its_rank(tiny_model_path: Path, tmp_path: Path) -> None:
    address, secret = free_address(), secret_file(tmp_path)
    with (
        joining_process(tiny_model_path, address, secret) as joining,
        running_server(tiny_model_path, *remote_options(address, secret)) as server,
    ):
        pid = rank_pid(joining)
        assert pid is not None
        os.kill(joining.pid, signal.SIGKILL)
        eventually(lambda: not is_alive(pid))
        joining.wait(60)
        eventually(lambda: server.http.get("/readyz").status_code != 200)
