"""caravan batch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from caravan.offline.batch import BatchFileError, journal_of, run_batch
from caravan.offline.engine import LocalEngine
from caravan.offline.settings import engine_settings
from caravan.server.batches.batch_store import BatchStore
from caravan.server.settings import Settings
from tests.support.running_server import running_server

pytestmark = pytest.mark.slow

OPTIONS = ("--served-model-name", "tiny", "--kv-cache-memory", "16MiB", "--dtype", "float32", "--max-num-seqs", "4")
# Runs a program to which an interrupt is sent as from a terminal; a shell's background job ignores it.
INTERRUPTIBLE = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def settings_of(model: Path) -> Settings:
    return engine_settings(
        {"model": str(model), "served_model_name": "tiny", "kv_cache_memory": "16MiB", "dtype": "float32"}
    )


def write_lines(path: Path, num_lines: int, **fields: Any) -> Path:
    urls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 12, "temperature": 0, "logprobs": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "seed": 5, "max_tokens": 9}),
        ("/v1/embeddings", {"input": ["Hello", "world"]}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 5, "regex": "[ab]+c", "seed": 3}),
    ]
    with path.open("w") as file:
        for number in range(num_lines):
            url, body = urls[number % len(urls)]
            line = {"custom_id": f"{number}", "method": "POST", "url": url, "body": {"model": "tiny"} | body | fields}
            file.write(json.dumps(line) + "\n")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(model: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "caravan", "batch", *map(str, arguments), "--model", str(model), *OPTIONS]


def test_the_answers_are_those_of_a_server(tiny_model_path: Path, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", 8), tmp_path / "out.jsonl"
    seen: list[tuple[int, int, int]] = []
    counts = run_batch(settings_of(tiny_model_path), source, output, lambda *numbers: seen.append(numbers))
    assert (counts.total, counts.failed) == (8, 0)
    assert seen == [(number, 0, 8) for number in range(9)]
    assert not journal_of(output).exists()
    answers = read_lines(output)
    assert [line["custom_id"] for line in answers] == [f"{number}" for number in range(8)]
    with running_server(tiny_model_path, *OPTIONS) as server:
        for request, answer in zip(read_lines(source), answers, strict=True):
            live = server.http.post(request["url"], json=request["body"]).json()
            written = answer["response"]["body"]
            name = "data" if "data" in live else "choices"
            assert written[name] == live[name]


def test_an_interrupted_batch_continues(tiny_model_path: Path, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", 200), tmp_path / "out.jsonl"
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *command(tiny_model_path, source, output)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        text = ""
        while not any(f"| {n}" in text for n in range(1, 200)):  # the bar shows an answer
            text += process.stderr.read(1)
            assert process.poll() is None, text
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "The same command continues the batch." in rest
        assert journal_of(output).is_dir()
        assert not output.exists()
    done = subprocess.run(
        command(tiny_model_path, source, output), capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "has the answers to 200 requests; 0 failed." in done.stderr
    assert [line["custom_id"] for line in read_lines(output)] == [f"{number}" for number in range(200)]
    again = subprocess.run(command(tiny_model_path, source, output), capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (1, f"{output} exists. Remove it, or choose another OUTPUT.\n")


def test_failed_requests_are_in_the_output_and_in_the_exit_code(tiny_model_path: Path, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", 2, temperature=9), tmp_path / "out.jsonl"
    done = subprocess.run(command(tiny_model_path, source, output), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "2 failed." in done.stderr
    assert [line["response"]["status_code"] for line in read_lines(output)] == [400, 400]


def test_wrong_lines_are_named_and_leave_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n[]\n")
    done = subprocess.run(command(tmp_path, source, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{source}, line 2: The line is []; it must be an object.\n" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none.jsonl", "out"), 1, "none.jsonl does not exist or is not a file."),
        (("in.jsonl", "out", "--dtype", "x"), 2, "Invalid value 'x' for --dtype"),
        (("in.jsonl", "out"), 1, "none.gguf"),
        (("in.jsonl", "no/such/out"), 1, "The folder of no/such/out does not exist."),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    write_lines(tmp_path / "in.jsonl", 1)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "caravan", "batch", *arguments, "--model", "none.gguf"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ,
        check=False,
    )
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_journal_of_another_input_is_refused(tiny_model_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"

    async def fails(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(BatchStore, "unanswered", fails)
        with pytest.raises(OSError, match="no"):
            run_batch(settings_of(tiny_model_path), source, output, lambda *_: None)
    write_lines(source, 3)
    with pytest.raises(BatchFileError, match="has the answers to another INPUT"):
        run_batch(settings_of(tiny_model_path), source, output, lambda *_: None)
    write_lines(source, 2)
    assert run_batch(settings_of(tiny_model_path), source, output, lambda *_: None).total == 2


def test_other_options_do_not_continue_a_batch(tiny_model_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    template, model = tmp_path / "template", tmp_path / "model.gguf"
    template.write_text("{{ messages[0].content }}")
    shutil.copy(tiny_model_path, model)
    options = {"model": str(model), "served_model_name": "tiny", "kv_cache_memory": "16MiB", "dtype": "float32"}
    options |= {"chat_template": str(template)}

    def run(**other: Any) -> int:
        return run_batch(engine_settings(options | other), source, output, lambda *_: None).total

    async def fails(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(BatchStore, "unanswered", fails)
        with pytest.raises(OSError, match="no"):
            run()
    with pytest.raises(BatchFileError, match=r"has answers of another --quantization, --model\. Use the same again"):
        run(model=str(tiny_model_path), quantization="int8")
    with pytest.raises(BatchFileError, match="of another --served-model-name"):
        run(served_model_name="other")
    template.write_text("{{ messages[-1].content }}")
    with pytest.raises(BatchFileError, match="of another --chat-template"):
        run()
    template.write_text("{{ messages[0].content }}")
    before = model.stat()
    model.touch()
    with pytest.raises(BatchFileError, match="of another --model"):
        run()
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(num_threads=1, max_num_seqs=2, kv_cache_memory="8MiB") == 2


def test_a_process_killed_while_it_removes_the_journal_leaves_a_complete_batch(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"

    def stops(folder: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (folder / "journal.sqlite").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stops)
        with pytest.raises(KeyboardInterrupt):
            run_batch(settings_of(tiny_model_path), source, output, lambda *_: None)
    answers = output.read_bytes()
    with pytest.raises(BatchFileError, match="exists"):
        run_batch(settings_of(tiny_model_path), source, output, lambda *_: None)
    assert output.read_bytes() == answers
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_a_failed_engine_ends_the_command_and_no_line(tiny_model_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"

    def fails(*_: object) -> None:
        raise RuntimeError("out of steps")

    started_at_seconds = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "_run_step", fails)
        with pytest.raises(RuntimeError, match="The engine failed: out of steps"):
            run_batch(settings_of(tiny_model_path), source, output, lambda *_: None)
    assert time.monotonic() - started_at_seconds < 60
    assert run_batch(settings_of(tiny_model_path), source, output, lambda *_: None).failed == 0
