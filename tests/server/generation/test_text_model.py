"""TextModel: the tokenizer and the chat template that a model's files have."""

from pathlib import Path

import pytest

from caravan.server.generation.text_model import TextModel, text_parts
from tests.support.fakes import byte_tokenizer
from tests.support.gguf_files import write_tiny_llama

BROKEN = "{% for message in messages %}"


@pytest.fixture
def bare_model(tmp_path: Path) -> Path:
    path = tmp_path / "bare.gguf"
    write_tiny_llama(path, metadata={"tokenizer.chat_template": None})
    return path


def test_the_template_of_the_model_is_used(tiny_model_path: Path) -> None:
    tokenizer, template = text_parts(tiny_model_path, None)
    assert tokenizer.chat_template is not None
    assert template is not None
    try:
        rendered = template.render([{"role": "user", "content": "hi"}], special_tokens=[])
        assert rendered.text.replace(rendered.guard, "").startswith("<|im_start|>user\nhi")
    finally:
        template.close()


def test_a_template_file_has_priority_and_must_be_valid(bare_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    _, template = text_parts(bare_model, file)
    assert template is not None
    template.close()
    file.write_text(BROKEN)
    with pytest.raises(ValueError, match="template"):
        text_parts(bare_model, file)


def test_a_model_without_a_template_is_logged(bare_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert text_parts(bare_model, None)[1] is None
    assert caplog.messages == ["The model has no chat template; chats are rejected."]


def test_a_model_with_a_broken_template_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken.gguf"
    write_tiny_llama(path, metadata={"tokenizer.chat_template": BROKEN})
    assert text_parts(path, None)[1] is None
    assert caplog.messages[-1].endswith("Chats are rejected.")  # writing the file can be logged before


def test_the_longest_token_limits_how_few_tokens_a_text_can_have() -> None:
    tokenizer = byte_tokenizer()
    model = TextModel(max_model_len=64, tokenizer=tokenizer, chat_template=None)
    assert model.max_token_bytes == max(len(text.encode()) for text in tokenizer.special_tokens)
