"""A server for each model format: it starts, generates text, and chats if there is a template."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from tests.model.checkpoint.published_formats import write_llama2c, write_meta
from tests.model.vocabularies import trained_sentencepiece
from tests.server.openai.api import CHAT_ML
from tests.support.running_server import running_server
from tests.support.served_checkpoints import huggingface
from tests.support.tokenizer_files import llama2c_bytes, write_tiktoken
from tests.support.transformers_models import random_model

pytestmark = pytest.mark.slow

META = {"intermediate_size": 128, "rms_norm_eps": 1e-5}


def meta(folder: Path) -> Path:
    folder = folder / "llama-3"
    folder.mkdir()
    ranks = write_tiktoken(folder / "tokenizer.model")
    write_meta(folder, random_model("Llama", vocab_size=len(ranks) + 256, **META), rope_theta=500_000.0)
    return folder


def llama2c(folder: Path) -> Path:
    processor = SentencePieceProcessor(model_proto=trained_sentencepiece())
    (folder / "tokenizer.bin").write_bytes(llama2c_bytes(processor))
    write_llama2c(folder / "stories.bin", random_model("Llama", vocab_size=len(processor), **META), version=2)
    return folder / "stories.bin"


def test_a_chat_template_file_is_used_for_a_model_without_one(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(CHAT_ML)
    options = ["--kv-cache-memory", "32MiB", "--chat-template", str(tmp_path / "chat.jinja")]
    with running_server(meta(tmp_path), *options) as server:
        body = {"model": "llama-3", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        assert server.http.post("/v1/chat/completions", json=body).status_code == 200


def blind(folder: Path) -> Path:
    """A template of the model's own that drops what users say."""
    folder = huggingface(folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.role }}{% endfor %}")
    return folder


@pytest.mark.parametrize(
    ("write", "name", "can_chat"),
    [
        (huggingface, "Tiny-Qwen-0.5B", True),
        (blind, "Tiny-Qwen-0.5B", False),
        (meta, "llama-3", False),
        (llama2c, "stories", False),
    ],
)
def test_models_of_all_formats_are_served(
    write: Callable[[Path], Path], name: str, can_chat: bool, tmp_path: Path
) -> None:
    with running_server(write(tmp_path), "--kv-cache-memory", "32MiB") as server:
        assert [entry["id"] for entry in server.http.get("/v1/models").json()["data"]] == [name]
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        body = {"model": name, "prompt": "hello 世界", "max_tokens": 12, "ignore_eos": True}
        first, second = (server.http.post("/v1/completions", json=body | {"temperature": 0}).json() for _ in range(2))
        assert first["usage"]["completion_tokens"] == 12
        assert first["choices"] == second["choices"]
        messages = [{"role": "user", "content": "hi"}]
        chat = server.http.post("/v1/chat/completions", json={"model": name, "messages": messages, "max_tokens": 5})
        assert chat.status_code == (200 if can_chat else 400)
        if can_chat:  # the model's own default is greedy
            assert server.http.post("/v1/completions", json=body).json()["choices"] == first["choices"]
