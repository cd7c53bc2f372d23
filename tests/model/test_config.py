"""ModelConfig: architectures that cannot be computed are refused by name."""

from dataclasses import replace
from typing import Any

import pytest

from caravan.model.config import UnsupportedModel
from tests.support.tiny_llama import TINY


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"max_position": 0}, "max_position is 0"),
        ({"num_heads": 4, "num_kv_heads": 3}, "must be a multiple of num_kv_heads"),
        ({"head_dim": 3}, "head_dim is 3; rotary embeddings rotate pairs"),
        ({"rms_norm_eps": float("nan")}, "must be positive"),
        ({"sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_an_impossible_architecture_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        replace(TINY, **changes)


def test_the_first_layers_may_attend_to_all_positions() -> None:
    config = replace(TINY, sliding_window=7, full_layers=(0,))
    assert [config.window(layer) for layer in range(2)] == [None, 7]
