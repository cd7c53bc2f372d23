"""Seeded bugs: each is applied to a copy of the sources, and the tests must fail.

Other servers had such bugs, or an edit could introduce them. `gates` are the tests of the part that has the bug, not
tests that were written for it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SECONDS = 150  # for the gates of one bug; a test that hangs counts as failed
ALL = "not real_model"  # tests of the real model are for `make test`
QUICK = f"{ALL} and not slow"


class Bug(NamedTuple):
    """A change of one line that makes a program wrong."""

    name: str
    file: str
    sound: str  # occurs in the file once
    broken: str
    gates: str = "server"


_SCHEDULER = (
    "scheduler",
    "isolation",
    "prefill_limiter",
    "waiting_queue",
    "speculation",
    "scheduler_properties",
    "block_pool",
    "prefill_budget",
    "displacement",
    "prefix_history",
    "overlapped_engine",
    "faults",
    "ranks",
)

GATES = {
    "server": [
        "tests/server/openai",
        "tests/server/generation/test_text_stream.py",
        "tests/server/generation/test_stop_strings.py",
    ],
    "process": ["tests/server/test_serving.py", "tests/server/engine/test_client.py"],
    "http": [
        "tests/server/http/test_protocol.py",
        "tests/server/http/test_trusted_hosts.py",
        "tests/server/http/test_api_keys.py",
    ],
    "queue": [
        "tests/server/generation/test_admission.py",
        "tests/server/generation/test_fair_share.py",
        "tests/server/generation/test_wait_forecast.py",
        "tests/server/openai",
    ],
    "replay": ["tests/server/engine/test_in_flight.py", "tests/server/engine/test_client.py"],
    "replicas": ["tests/server/replicas/test_replica_set.py", "tests/server/replicas/test_known_prefixes.py"],
    "scheduler": [f"tests/scheduler/test_{part}.py" for part in _SCHEDULER],
    "grammar": ["tests/scheduler/test_grammar.py", "tests/scheduler/test_grammar_threads.py"],
    "model": ["tests/model/test_sampling.py", "tests/model/checkpoint"],
}

# fmt: off
BUGS = [
    Bug("a block is cached before it is computed", "scheduler/block_manager.py",
        "num_full = sequence.num_computed_tokens // self", "num_full = sequence.num_tokens // self",
        "scheduler"),
    Bug("an aborted request keeps its blocks", "scheduler/scheduler.py",
        "            self._end(sequence)\n        elif", "            self.running.remove(sequence)\n        elif",
        "scheduler"),
    Bug("blocks of a failed request stay in the cache", "scheduler/block_manager.py",
        "            self.pool.forget(block)", "            pass", "scheduler"),
    Bug("blocks of a failed request are not cleared", "scheduler/block_manager.py",
        "        self.poisoned += filter(self.pool.is_free, blocks)\n", "", "scheduler"),
    Bug("a failing row fails the whole batch", "scheduler/isolation.py",
        "            failures[index] = described(error)\n            continue",
        "            return StepResult([], {}, dict.fromkeys(range(len(plan)), str(error)))", "scheduler"),
    Bug("a preempted sequence goes to the end of the queue", "scheduler/scheduler.py",
        "self.waiting.put_back(sequence)", "self.waiting.append(sequence)", "scheduler"),
    Bug("one token too many is generated", "scheduler/sequence.py",
        "len(self.request.prompt_token_ids) >= params.max_tokens",
        "len(self.request.prompt_token_ids) > params.max_tokens", "scheduler"),
    Bug("a token of a sequence that has left the batch is kept", "scheduler/overlap.py",
        "scheduled.sequence.block_table is table for", "True for", "scheduler"),
    Bug("a sequence is preempted while its token is on the device", "scheduler/overlap.py",
        "find_displaced() is None and has_blocks(scheduler, running)", "find_displaced() is None", "scheduler"),
    Bug("a full GPU fails single requests", "scheduler/faults.py",
        "is_out_of_memory(error) or is_device_fault(error)", "is_device_fault(error)", "scheduler"),
    Bug("a step is run again after an exchange between ranks has failed", "scheduler/faults.py",
        "isinstance(error, MemoryError | ExchangeFailed)", "isinstance(error, MemoryError)", "scheduler"),
    Bug("a rank that fails between two steps is not noticed", "scheduler/ranks.py",
        "is_first, self._has_failed = not self._has_failed, True", "is_first = False", "scheduler"),
    Bug("tenants share prefixes", "scheduler/block_pool.py",
        "return hashlib.sha256(salt.encode()).digest()", "return hashlib.sha256(b\"\").digest()", "scheduler"),
    Bug("an explanation reveals what another key has in the cache", "server/observe/prefix_misses.py",
        'return "not seen" if reason == "other key" else reason', "return reason", "server"),
    Bug("an evicted prefix is not seen", "scheduler/block_pool.py",
        "        self.history.remove(block_hashes)\n", "", "scheduler"),
    Bug("draft tokens are not verified", "scheduler/scheduler.py",
        "if reason is not None or sample.token_id != draft:", "if reason is not None or draft is None:", "scheduler"),
    Bug("the latency target is ignored", "scheduler/prefill_limiter.py",
        "if self._target_seconds is not None and (", "if False and (", "scheduler"),
    Bug("a long prompt is computed before those of other keys", "scheduler/prefill_budget.py",
        "if len(wanted) > 1 and sum(wanted.values()) > num_tokens:", "if False:", "scheduler"),
    Bug("the queue is not round-robin over keys", "scheduler/waiting_queue.py",
        "self._num_served[key] = self._num_served.get(key, 0.0) + weight", "pass", "scheduler"),
    Bug("one key keeps the whole batch", "scheduler/displacement.py",
        "    if first is None or first.awaited_hash is not None or ", "    if True or ", "scheduler"),
    Bug("a returning key is scheduled before all others", "scheduler/waiting_queue.py",
        "or {self._joined_last}", "or {None}", "scheduler"),
    Bug("priority is effective across keys", "scheduler/waiting_queue.py",
        "lines.setdefault(place.urgency, {})", "lines.setdefault(place.priority, {})", "scheduler"),
    Bug("the choices of a request are quarantined one by one", "server/engine/in_flight.py",
        "self._groups.setdefault(request.group, CrashGroup())", "self._groups.setdefault(request_id, CrashGroup())",
        "replay"),
    Bug("a grammar in an error state ends its text", "scheduler/compiled_grammar.py",
        "        _check(state)  # in an error state the mask allows the end alone\n", "", "grammar"),
    Bug("random numbers depend on nothing but the seed", "model/sampling/sampler.py",
        "word = _mix(_mix(seed) + (position + 1) * 0x9E3779B97F4A7C15)", "word = _mix(_mix(seed))", "model"),
    Bug("weight files may run code", "model/checkpoint/meta.py",
        "weights_only=True, mmap=True", "weights_only=False, mmap=True", "model"),
    Bug("a replay loses the last token", "server/engine/in_flight.py",
        "output_token_ids=[*self._output_token_ids])", "output_token_ids=self._output_token_ids[:-1])", "replay"),
    Bug("a replay repeats the prompt's log-probabilities", "server/engine/in_flight.py",
        "self._num_repeated = self._num_prompt_logprobs", "self._num_repeated = 0", "replay"),
    Bug("a request that crashes the engine is retried forever", "server/engine/in_flight.py",
        "if group.crash_count >= MAX_CRASHES:", "if group.crash_count < 0:", "replay"),
    Bug("a quarantined request does not run alone", "server/engine/in_flight.py",
        "return self.crash_count >= QUARANTINE_CRASHES", "return self.crash_count < 0", "replay"),
    Bug("a replica that is reserved gets other requests", "server/replicas/replica_set.py",
        "members = [one for one in members if one.reserved_for is None]", "members = [*members]", "replicas"),
    Bug("known prefixes do not decide where a request goes", "server/replicas/known_prefixes.py",
        "(-counts[index], near[index].num_requests", "(near[index].num_requests", "replicas"),
    Bug("a stopped step loop sends heartbeats", "scheduler/message_sender.py",
        "if used_seconds > before and not is_stuck:", "if not is_stuck:", "replay"),
    Bug("an engine without a heartbeat is ready", "server/engine/client.py",
        "return self._is_connected and self._silence.seconds() < READY_SILENCE_SECONDS", "return self._is_connected",
        "replay"),
    Bug("the engine does not end with the server", "scheduler/parent_connection.py",
        "    os._exit(0)  # at once", "    return  # at once", "process"),
    Bug("SIGTERM truncates streams", "server/http/graceful_shutdown.py",
        "self._ends_at_seconds = now + self._drain_seconds", "self._ends_at_seconds = 0.0", "process"),
    Bug("a draining server refuses connections", "server/http/graceful_shutdown.py",
        "        self._limit.close()\n", "        self._limit.close()\n        self.should_exit = True\n", "process"),
    Bug("the concurrency limit is never released", "server/http/concurrency_limit.py",
        "            self._limit.requests_by_key[key_name] -= 1", "            pass", "queue"),
    Bug("the queue has no limit", "server/generation/fair_share.py",
        "if sum(used.values()) + num_more <= limit:", "if sum(used.values()) + num_more <= 10 * limit + 10:", "queue"),
    Bug("one key fills the queue", "server/generation/fair_share.py",
        "return used.get(key_name, 0) + num_more <= limit // num_keys", "return False", "queue"),
    Bug("an aborted sequence stays in the admission queue", "server/generation/admission.py",
        "was_waiting = self._waiting.pop(reservation, reservation) is None", "was_waiting = True", "queue"),
    Bug("Retry-After is zero", "server/http/errors.py",
        "seconds = min(max(math.ceil(retry_after_seconds), 1), _MAX_RETRY_SECONDS)", "seconds = 0", "queue"),
    Bug("the path is taken from the Host header", "server/http/auth.py",
        "path = scope.get(\"path\", \"\")",
        "path = \"/\" + dict(scope[\"headers\"]).get(b\"host\", b\"\").decode().rpartition(\"/\")[2]"),
    Bug("any key is valid", "server/http/api_keys.py",
        "if hmac.compare_digest(digest, known.digest):", "if digest:", "server"),
    Bug("host names with an allowed suffix are allowed", "server/http/trusted_hosts.py",
        "return host in self._names or", "return host.endswith(tuple(self._names)) or", "http"),
    Bug("a head has no timeout", "server/http/protocol.py",
        "self._set_timer(self.head_seconds)", "pass", "http"),
    Bug("NaN is accepted", "server/http/body.py",
        "parse_constant=_reject_constant", "parse_constant=float"),
    Bug("the first id after the vocabulary is valid", "server/openai/prompts.py",
        "max(token_ids) < vocab_size):", "max(token_ids) <= vocab_size):"),
    Bug("the prefix of a stop string is sent", "server/generation/stop_strings.py",
        "num_safe = len(text_so_far) - self._stop_strings.depth[self._state]", "num_safe = len(text_so_far)"),
    Bug("an incomplete character is sent", "model/tokenizer/detokenizer.py",
        "text, num_decoded = codecs.utf_8_decode(received, \"replace\")",
        "text, num_decoded = codecs.utf_8_decode(received, \"replace\", True)"),
    Bug("requests of disconnected clients are not aborted", "server/generation/generation.py",
        "        for choice in self._choices:\n            choice.end(reason)\n", ""),
    Bug("a stream that fails has no [DONE]", "server/openai/formatter.py",
        "return event(error.body()) + self._last(generation)", "return event(error.body())"),
]
# fmt: on


def is_killed(bug: Bug, folder: Path) -> bool:
    """Return whether the gates fail with the bug; `folder` is a copy of the sources, and is left as it was."""
    path = folder / bug.file
    sound = path.read_text("utf-8")
    if sound.count(bug.sound) != 1:
        raise ValueError(f"{bug.file} has what {bug.name!r} changes {sound.count(bug.sound)} times; it must be once.")
    path.write_text(sound.replace(bug.sound, bug.broken), "utf-8")
    try:
        # Most fail long before a second process has started, and in a test that is not slow.
        return not all(passes(GATES[bug.gates], folder, marked, num_processes=0) for marked in (QUICK, ALL))
    finally:
        path.write_text(sound, "utf-8")


def passes(gates: Sequence[str], folder: Path, marked: str = ALL, *, num_processes: int = 2) -> bool:
    """Return whether the tests with these marks pass in a copy of the sources."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *gates]
    # The copy comes before what is installed.
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            [*command, "-m", marked, "-n", f"{num_processes}", "--dist", "worksteal"],
            cwd=folder,
            env=environment,
            check=False,
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    if ended.returncode == 5 and marked == QUICK:  # all of them are slow
        return True
    if ended.returncode not in (0, 1, 2):  # passed, failed, or could not even be imported
        raise RuntimeError(ended.stdout.decode()[-2000:] + ended.stderr.decode()[-2000:])
    return ended.returncode == 0


def copy_sources(folder: Path) -> Path:
    """Copy the sources with their tests and return where they are.

    What they were compiled to is copied, too: it is valid for a file that has the same time and size.
    """
    copy = folder / "caravan"
    copy.mkdir()
    for name in ("server", "scheduler", "model", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("figures"))
    shutil.copytree(ROOT / "caravan", copy / "caravan", symlinks=True)
    for name in ("pyproject.toml", "SECURITY.md", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy
