"""An application of Ray Serve whose engines are fake ones, to measure what an API process costs beside it."""

from pathlib import Path
from typing import Any

from ray import serve

from caravan.server.ray_app import Engines

FAKE_ENGINE = str(Path(__file__).with_name("fake_engine.py"))


def fake_engines(args: dict[str, Any]) -> serve.Application:
    """Return the application; `args` has `model`, `step_ms` and `tokens_per_step`."""
    program = (FAKE_ENGINE, str(args["step_ms"]), str(args["tokens_per_step"]))
    return serve.deployment(Engines, name="Engines").bind({"model": args["model"]}, program)
