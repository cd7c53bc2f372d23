"""Fixtures of the tests of the model package."""

from pathlib import Path

import pytest

from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer, tokenizer_from_gguf
from tests.model.vocabularies import gpt2_metadata, llama_metadata, trained_sentencepiece


@pytest.fixture(scope="session")
def byte_pair() -> Tokenizer:
    return tokenizer_from_gguf(gpt2_metadata())


@pytest.fixture(scope="session")
def proto() -> bytes:
    return trained_sentencepiece()


@pytest.fixture(scope="session")
def sentencepiece(proto: bytes) -> Tokenizer:
    return tokenizer_from_gguf(llama_metadata(proto))


@pytest.fixture(params=["byte_pair", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    chosen: Tokenizer = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="session")
def real_tokenizer(real_model_path: Path) -> Tokenizer:
    return load_tokenizer(real_model_path)
