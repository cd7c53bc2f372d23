"""The worker process of traces: it computes a model in plain PyTorch, in float32, and reports the numbers on the way.

Run as a module, with three arguments: the processor time limit per line in seconds, the memory limit in bytes beside
the weights, and the niceness of the process (see nice(2)). The first line of standard input is
{"path": ..., "adapter": ..., "max_position": ...}, the model, the folder of an adapter that is merged into it (empty:
none is), and the length of its rotary table; each further one is
{"token_ids": ..., "layer": ..., "head": ..., "position": ...}. A reply is {"trace": JSON as text}, {} for the model, or
{"failed": why, "code": ...}. SIGPROF ends the process at the time limit, and exit status 77 means that memory ran out.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import num_parameters
from caravan.model.config import UnsupportedModel
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.trace.recording import recording_llama
from caravan.model.trace.trace import trace
from caravan.scheduler.memory import free_memory_bytes
from caravan.scheduler.priority import LowPriority

MEMORY_EXIT_STATUS = 77
_NUM_THREADS = 2  # the engine has the others


def main(lines: BinaryIO, replies: BinaryIO, time_limit_seconds: float, memory_limit_bytes: int) -> None:
    """Reply to lines until they end."""
    model: Llama | None = None
    for line in lines:
        # It counts processor time, so load does not matter. There is no handler: the kernel ends this process.
        signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
        request = json.loads(line)
        reply: dict[str, str] = {}
        if model is None:
            model, reply = load(Path(request["path"]), request["adapter"], request["max_position"], memory_limit_bytes)
        else:
            reply = answer(model, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def load(path: Path, adapter: str, max_position: int, memory_limit_bytes: int) -> tuple[Llama | None, dict[str, str]]:
    """Return the model, or None and the reply that says why not."""
    try:
        checkpoint = open_checkpoint(path, Path(adapter) if adapter else None)
        if parts := checkpoint.config.parts_without_gpu():
            return None, {"failed": f"A model with {parts} cannot be traced yet.", "code": "unsupported"}
        weight_bytes = num_parameters(checkpoint) * torch.float32.itemsize
        free_bytes = free_memory_bytes()
        if weight_bytes + memory_limit_bytes > free_bytes:
            text = (
                f"A trace of this model takes {(weight_bytes + memory_limit_bytes) / 1e6:,.0f} MB, and "
                f"{free_bytes / 1e6:,.0f} MB are free."
            )
            return None, {"failed": text, "code": "too_large"}
        _limit_memory(weight_bytes + memory_limit_bytes)
        model = load_model(checkpoint, torch.float32, torch.device("cpu"), max_position, recording_llama)
    except (BrokenCheckpoint, UnsupportedModel, OSError) as error:
        return None, {"failed": str(error), "code": "unreadable"}
    return model, {}


def answer(model: Llama, request: dict[str, Any]) -> dict[str, str]:
    """Return the reply to a request for a trace."""
    config, token_ids = model.config, request["token_ids"]
    for name, limit in (("layer", config.num_layers), ("head", config.num_heads), ("position", len(token_ids))):
        if request[name] >= limit:
            text = f"`{name}` is {request[name]}; it must be below {limit}."
            return {"failed": text, "code": "invalid", "param": name}
    if max(token_ids) >= config.vocab_size:
        text = f"A token has the id {max(token_ids)}; the model has {config.vocab_size}."
        return {"failed": text, "code": "invalid", "param": "text"}
    return {"trace": json.dumps(trace(model, token_ids, request["layer"], request["head"], request["position"]))}


def _limit_memory(num_bytes: int) -> None:
    """Limit the memory that this process can allocate from now on; files that it maps do not count."""
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
        limit = used + num_bytes
        if hard_limit != resource.RLIM_INFINITY:  # an unprivileged process cannot exceed it
            limit = min(limit, hard_limit)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard_limit))


def _run() -> None:  # pragma: no cover  # in its own process
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # service managers send it to all processes; the server ends this one
    os.nice(int(sys.argv[3]))
    LowPriority()  # the process has a session of its own: where Linux groups by session, nice has no effect beyond it
    torch.set_num_threads(min(_NUM_THREADS, torch.get_num_threads()))
    try:
        main(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]), int(sys.argv[2]))
    except MemoryError:
        os._exit(MEMORY_EXIT_STATUS)
    except RuntimeError as error:  # of torch's allocator
        if "allocate memory" not in str(error):
            raise
        os._exit(MEMORY_EXIT_STATUS)


if __name__ == "__main__":  # pragma: no cover
    _run()
