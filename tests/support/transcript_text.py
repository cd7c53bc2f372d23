"""The text of what an engine wrote with a tokenizer of bytes."""

from tests.support.tiny_llama import Transcript


def text_of(transcript: Transcript) -> str:
    return bytes(token for token in transcript.token_ids if token < 256).decode()
