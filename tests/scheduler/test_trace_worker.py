"""The process of traces: what it replies to each line, and which models it refuses."""

import io
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from caravan.model.checkpoint.checkpoint import num_parameters
from caravan.model.loader import open_checkpoint
from caravan.scheduler import trace_worker
from tests.support.transformers_models import random_model

LIMIT_BYTES = 2**26
REQUEST: dict[str, Any] = {"token_ids": [1, 2, 3], "layer": 0, "head": 0, "position": 2}


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """The limits that the program asks for, instead of those of the test's process."""
    asked: dict[Any, Any] = {"timers": []}
    monkeypatch.setattr(signal, "setitimer", lambda _, seconds: asked["timers"].append(seconds))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: asked.update({kind: pair}))
    return asked


def replies(*requests: dict[str, Any]) -> list[dict[str, str]]:
    """Return the program's replies to lines."""
    lines, written = io.BytesIO(b"".join(json.dumps(one).encode() + b"\n" for one in requests)), io.BytesIO()
    trace_worker.main(lines, written, 3.5, LIMIT_BYTES)
    return [json.loads(line) for line in written.getvalue().splitlines()]


def of_model(path: Path) -> dict[str, Any]:
    return {"path": str(path), "adapter": "", "max_position": 64}


def test_a_model_is_loaded_and_traces_are_computed_within_limits(tiny_model_path: Path, limits: dict[Any, Any]) -> None:
    loaded, first, second = replies(of_model(tiny_model_path), REQUEST, REQUEST)
    assert loaded == {}
    assert first == second
    names = [stop["name"] for stop in json.loads(first["trace"])["stops"]]
    assert names[0] == "embedding"
    assert names[-1] == "logits"
    assert limits["timers"] == [3.5, 0] * 3
    weight_bytes = 4 * num_parameters(open_checkpoint(tiny_model_path))
    assert limits[resource.RLIMIT_DATA][0] > weight_bytes + LIMIT_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_the_memory_limit_does_not_exceed_the_hard_limit_of_the_process(
    tiny_model_path: Path, limits: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for hard_limit, expected in ((2**20, 2**20), (2**60, None), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard_limit=hard_limit: (hard_limit, hard_limit))
        assert replies(of_model(tiny_model_path)) == [{}]
        soft, hard = limits[resource.RLIMIT_DATA]
        assert hard == hard_limit
        assert soft == expected if expected else LIMIT_BYTES < soft < 2**60


def test_a_model_that_does_not_fit_into_free_memory_is_refused(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_worker, "free_memory_bytes", lambda: LIMIT_BYTES)
    (reply,) = replies(of_model(tiny_model_path))
    assert reply["code"] == "too_large"
    assert reply["failed"].endswith("and 67 MB are free.")


def test_files_without_a_model_are_refused(tmp_path: Path) -> None:
    (reply,) = replies(of_model(tmp_path))
    assert reply["code"] == "unreadable"


def test_a_model_with_parts_that_a_trace_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    random_model("Olmo2").save_pretrained(tmp_path)
    (reply,) = replies(of_model(tmp_path))
    assert reply["code"] == "unsupported"
    assert reply["failed"].startswith("A model with norms after attention and feed-forward and")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"layer": 99}, "layer"), ({"head": 99}, "head"), ({"position": 3}, "position"), ({"token_ids": [9**9]}, "text")],
)
def test_what_the_model_does_not_have_is_named(tiny_model_path: Path, fields: dict[str, Any], param: str) -> None:
    _, reply = replies(of_model(tiny_model_path), REQUEST | {"position": 0} | fields)
    assert (reply["code"], reply["param"]) == ("invalid", param)
