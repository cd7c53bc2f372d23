"""Ask a process of its own what several engines need: the plan needs PyTorch, which the API process does without."""

import os
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from caravan.scheduler.memory_needs import MemoryPlan, PlanFailed, PlanMemory
from caravan.scheduler.messages import StartEngine
from caravan.server.engine.process import engine_environment

PLAN_PROGRAM = ("-P", "-m", "caravan.scheduler.memory_plan")


def plan_memory(
    names: Sequence[str],
    starts: Sequence[StartEngine],
    budget_bytes: int | None,
    program: tuple[str, ...] = PLAN_PROGRAM,
) -> MemoryPlan:
    """Return what each engine needs and the budget, by default a share of the free memory.

    Raises ValueError, which names the model, if one of them can never be loaded.
    """
    question = PlanMemory(starts=[*starts], budget_bytes=budget_bytes)
    ended = subprocess.run(
        [sys.executable, *program],
        input=msgspec.msgpack.encode(question),
        stdout=subprocess.PIPE,
        check=False,
        start_new_session=True,  # Ctrl-C goes to the server only
        env=engine_environment(os.environ),
    )
    if ended.returncode:
        raise ValueError(f"The process that plans the memory ended (exit status {ended.returncode}).")
    answer = msgspec.msgpack.decode(ended.stdout, type=MemoryPlan | PlanFailed)
    if isinstance(answer, PlanFailed):
        raise ValueError(f"{names[answer.index]}: {answer.reason}")
    assert isinstance(answer, MemoryPlan)
    return answer
