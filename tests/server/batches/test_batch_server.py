"""Batches on a whole server: through OpenAI's client, under kills, beside a second server."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from tests.campaign.batch_kills import OPTIONS, run_batch
from tests.support.running_server import running_server

pytestmark = pytest.mark.slow


def test_the_openai_client_runs_a_batch(tiny_model_path: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "folder")
    with (
        running_server(tiny_model_path, *OPTIONS, "--batch-folder", folder) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0, "logprobs": True}
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body | fields}
            for name, fields in (("good", {}), ("bad", {"temperature": 9}))
        ]
        content = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("requests.jsonl", io.BytesIO(content)), purpose="batch")
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id).read() == content
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"for": "a test"},
        )
        deadline = time.monotonic() + 60
        while batch.status != "completed":
            assert time.monotonic() < deadline, batch
            time.sleep(0.05)
            batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (2, 1, 1)
        assert batch.output_file_id is not None
        assert batch.error_file_id is not None
        answer = json.loads(client.files.content(batch.output_file_id).text)
        live = client.chat.completions.create(**body)  # type: ignore[call-overload]
        expected = json.loads(live.choices[0].model_dump_json(exclude_unset=True))
        assert answer["response"]["body"]["choices"][0] == expected
        error = json.loads(client.files.content(batch.error_file_id).text)
        assert (error["custom_id"], error["response"]["status_code"]) == ("bad", 400)
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert len([*client.files.list(limit=1)]) == 3
        with pytest.raises(openai.BadRequestError, match="its status is completed"):
            client.batches.cancel(batch.id)
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
        second = subprocess.run(
            [sys.executable, "-m", "caravan", "serve", str(tiny_model_path), "--port", "0", "--batch-folder", folder],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert f"Another process uses the batch folder {folder}." in second.stderr


def test_a_server_that_is_killed_three_times_answers_each_line_once(tiny_model_path: Path, tmp_path: Path) -> None:
    undisturbed = run_batch(tiny_model_path, tmp_path / "undisturbed", 60, 0)
    killed = run_batch(tiny_model_path, tmp_path / "killed", 60, 3)
    assert len(undisturbed) == 60
    assert killed == undisturbed
