"""A scripted model: a script for the fake engine that answers a prompt by what stands last in it."""

from collections.abc import Mapping

from tests.support.fakes import EOS, Script, byte_tokenizer


def answering(answers: Mapping[str, str]) -> Script:
    """Return a script with the answer to the key that comes last in the prompt, of those that are in it."""
    token_bytes = byte_tokenizer().token_bytes

    def script(prompt: list[int], _: object) -> list[int]:
        text = b"".join(map(token_bytes, prompt)).decode()
        places = {key: text.rfind(key) for key in answers}
        last = max(places, key=lambda key: places[key])
        assert places[last] >= 0, f"no answer to a prompt that ends with {text[-200:]!r}"
        return [*answers[last].encode(), EOS]

    return script
