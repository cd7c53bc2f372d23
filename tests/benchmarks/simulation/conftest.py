"""Prompts in the vocabulary of tiny models."""

from collections.abc import Iterator

import pytest

from caravan.cli.bench import prompts


@pytest.fixture(scope="module", autouse=True)
def _small_vocabulary() -> Iterator[None]:
    """Draw prompts from the tokens that a tiny model has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "_TOKEN_IDS", range(10, 250))
        yield
