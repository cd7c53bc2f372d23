"""docs/reliability.md, generated from the results of the campaign."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from docs.figures.drawing import BLUE, box, figure, line, text
from tests.campaign.input_floods import percentile

FIGURE = "reliability-goodput.svg"

Part = dict[str, Any]


def write_page(results: dict[str, Part], page: Path) -> None:
    """Write the page, and its figure beside it in figures/."""
    sections = ["# Reliability", _INTRODUCTION]
    for name, write in _SECTIONS.items():
        if name in results:
            sections += [write(results[name]["result"]), _source(name, results[name])]
    if "overload" in results:
        _draw_goodput(results["overload"]["result"], page.parent / "figures" / FIGURE)
    page.write_text("\n\n".join(sections) + "\n", "utf-8")


_INTRODUCTION = (
    "What came of faults and abuse against a real server, written by `make campaign` and `make soak` "
    "(`python -m tests.campaign`). Shorter forms of all parts are among the tests. The model is the default one "
    "unless it is said otherwise; server and clients share the machine."
)


def _engine_faults(result: Part) -> str:
    detected, recovered = sorted(result["detection_seconds"]), sorted(result["recovery_seconds"])
    return f"""## The engine killed and stopped under load

32 streams at any time (greedy, sampled, bound to a JSON schema, three choices, with and without log-probabilities, some with long
prompts), each compared with what it is without faults: text, token ids, log-probabilities, how it ends. A new engine is started each
time; [`--standby`](operations.md#failures) starts it in advance.

| | |
|---|---|
| SIGKILL | {result["num_kills"]} |
| SIGSTOP (`--engine-timeout 2`) | {result["num_stops"]} |
| answers | {result["num_answers"]} |
| **lost, refused, cut or changed** | **{len(result["wrong"])}** |
| sequences given to another engine | {result["replayed"]:.0f} |
| from the fault to `/readyz` saying so | median {median(detected):.2f} s, longest {detected[-1]:.2f} s |
| from the fault to the next engine at work | median {median(recovered):.1f} s, longest {recovered[-1]:.1f} s |
| share of the KV pool in use at the end | {result["used"]:g} |"""


def _arrivals(result: Part) -> str:
    def row(name: str, value: Callable[[Part], object]) -> str:
        return f"| {name} | {' | '.join(str(value(result[kind])) for kind in ('plain', 'standby', 'sleeping'))} |"

    rows = (
        row("SIGKILL", lambda part: part["num_kills"]),
        row("answers", lambda part: part["num_answers"]),
        row("of these to requests sent at once after a kill", lambda part: part["num_arrived_meanwhile"]),
        row("**refused, lost, cut or changed**", lambda part: f"**{len(part['wrong'])}**"),
        row(
            "from the end of the process to a 503 of `/readyz`, median",
            lambda part: _shown_ms(median, part["unready_seconds"]),
        ),
        row("the longest", lambda part: _shown_ms(max, part["unready_seconds"])),
    )
    return f"""## Requests that arrive while the engine is replaced

Requests of two keys arrive four times a second, streamed and whole, of 15 kinds: completions, chats, tool calls, grammars, scores,
embeddings. The engine is killed at random moments; at once afterwards each key sends two more. Each answer is compared with that of
the same request alone: text, token ids, log-probabilities, how it ends. With a standby, each second kill waits until it is ready. With
`--sleep-after`, each second kill hits an engine that is being loaded for the first request.

| | a new engine | `--standby` | `--sleep-after 0.5` |
|---|---|---|---|
{chr(10).join(rows)}"""


def _shown_ms(of: Callable[[list[float]], float], seconds: list[float]) -> str:
    return f"{1000 * of(seconds):.0f} ms" if seconds else "not measured"


def _tiny_pool(result: Part) -> str:
    return f"""## Requests of all kinds in a tiny pool, under kills

Completions, chats, tool calls, grammars, scores and embeddings, 32 at a time, in a KV pool for about 700 tokens. Each answer is compared
with that of the same request alone: text, token ids, log-probabilities, how it ends.

| | |
|---|---|
| requests | {result["num_requests"]} |
| SIGKILL | {result["num_kills"]} |
| preemptions | {result["num_preemptions"]:.0f} |
| sequences given to another engine | {result["num_replayed"]:.0f} |
| **lost, refused, cut or changed** | **{len(result["wrong"])}** |"""


def _batch_kills(result: Part) -> str:
    return f"""## A batch whose server is killed

Lines of a batch, half of them sampled, on a tiny model; the server is killed at even distances and started again. The answers are
compared with those of an undisturbed run. The times include the starts of the servers.

| | |
|---|---|
| lines | {result["num_lines"]:,} |
| SIGKILL | {result["num_kills"]} |
| lines answered exactly once | {result["num_answered_once"]:,} |
| **lost or changed** | **{len(result["wrong"])}** |
| time without kills, with them | {result["seconds_without_kills"]:.0f} s, {result["seconds_with_kills"]:.0f} s |"""


def _overload(result: Part) -> str:
    rows = [
        f"| {level['times_capacity']:g} | {level['sent']} | {level['answered']} | {level['refused']} | {level['others']} "
        f"| {level['goodput']:.1f} ({level['goodput'] / result['peak']:.0%}) | {1000 * level['refusal_p99_seconds']:.0f} ms "
        f"| {level['max_waiting']} | {level['recovery_seconds']:.1f} s |"
        for level in result["levels"]
    ]
    return f"""## More requests than can be answered

Poisson arrivals for 20 s at several times the capacity, which is {result["peak"]:.1f} answers of 96 tokens a second. Queue: at most 64
requests and 3 s (`--max-queued-requests 64 --max-wait 3`). Recovery is the time from the end of the load to a request that is answered as
quickly as without load.

| times capacity | sent | answered | refused (429) | other statuses | answers a second (of the peak) | refusals, p99 | most that waited | recovery |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

![Answers a second over arrivals](figures/{FIGURE})"""


def _long_prompt(result: Part) -> str:
    rows = [
        f"| {target} | {1000 * p['p50']:.0f} | {1000 * p['p99']:.0f} | {1000 * p['p100']:.0f} | {p['first_token_seconds']:.1f} s |"
        for target, p in result.items()
    ]
    return f"""## A long prompt among running streams

A prompt of 4,000 tokens arrives while eight streams run. Pauses between their tokens until its first token, in ms:

| `--max-inter-token-latency` | p50 | p99 | longest | first token of the prompt |
|---|---|---|---|---|
{chr(10).join(rows)}"""


def _shutdown(result: Part) -> str:
    codes = sorted(set(result["exit_codes"]))
    return f"""## SIGTERM under load

A tiny model; eight streams each time; half of the servers with `--drain-timeout 0.1`.

| | |
|---|---|
| servers ended | {result["num_shutdowns"]} |
| streams that came to their own end | {result["num_finished"]} |
| streams ended with an error event and `[DONE]` | {result["num_ended"]} |
| refused | {result["num_refused"]} |
| **cut, or without an end** | **{len(result["wrong"])}** |
| exit codes | {", ".join(map(str, codes))} |
| processes left over | {result["num_left_children"]} |
| time to leave | median {median(result["seconds"]):.1f} s, longest {max(result["seconds"]):.1f} s |"""


def _cuts(result: Part) -> str:
    return f"""## Clients that leave

A tiny model; connections closed or reset at random moments.

| | |
|---|---|
| requests cut | {result["num_cuts"]:,} |
| of them before they were complete | {result["num_in_request"]:,} |
| of them in the middle of their answer | {result["num_in_answer"]:,} |
| **share of the KV pool in use afterwards** | **{result["leaked_blocks"]:g}** |
| sequences that still run | {result["num_running"]:g} |"""


def _body_flood(result: Part) -> str:
    rows = [
        f"| {flood['kind']} | {flood['statuses'].get('200', 0)} | {flood['statuses'].get('400', 0)} "
        f"| {flood['statuses'].get('429', 0)} | {flood['live_p99_seconds'] * 1000:.0f} ms "
        f"| {flood['live_max_seconds'] * 1000:.0f} ms | {flood['grown_bytes'] / 1e6:.0f} MB |"
        for flood in result["floods"]
    ]
    return "\n".join(
        [
            "## Large bodies at once",
            "",
            "Twelve bodies of 8 MB at once, ten times for each kind. What finds no memory is refused (429); what has more values than a body",
            "may have, or is longer than the model can take, is 400. `/livez` is asked all the while by another process.",
            "",
            "| bodies | 200 | 400 | 429 | `/livez` p99 | longest | memory of the API process grew by |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _memory(result: Part) -> str:
    rows = [
        f"| {server}, {process} | {slope['bytes_per_request']:.0f} ± {slope['half_width']:.0f} "
        f"| {'no' if slope['is_flat'] else 'yes'} |"
        for server, slopes in result.items()
        for process, slope in slopes.items()
    ]
    return f"""## Memory over 10,000 requests

A tiny model; all kinds of requests. Slope of the memory of each process over the second half, with a 95 % interval; it counts as
growth if the interval leaves out 0 and the slope is at least 1,000. The server that leaks keeps 4,096 bytes of each request.

| | bytes a request | grows |
|---|---|---|
{chr(10).join(rows)}"""


def _key_floods(result: Part) -> str:
    rows = [
        f"| {flood} | {1000 * median(delays['alone_seconds']):.0f} | {1000 * median(delays['seconds']):.0f} "
        f"| {1000 * max(delays['seconds']):.0f} | {delays['num_refused']} | {delays['num_finished']} |"
        for flood, delays in result.items()
    ]
    return f"""## One key floods the engine

A tiny model with low limits; 24 requests of one key are always there. Time of another key's requests for two tokens, half of them with a
grammar of their own, in ms:

| flood | alone, median | beside it, median | longest | requests of the flood refused | answered |
|---|---|---|---|---|---|
{chr(10).join(rows)}"""


def _input_floods(result: Part) -> str:
    rows = [
        f"| {flood} | {1000 * percentile(noticed['live'], 99):.0f} | {1000 * percentile(noticed['pauses'], 99):.0f} "
        f"| {1000 * max(noticed['pauses']):.0f} | {1000 * median(noticed['two_tokens']):.0f} "
        f"| {1000 * max(noticed['two_tokens']):.0f} | {', '.join(f'{n} x {s}' for s, n in noticed['statuses'].items())} |"
        for flood, noticed in result.items()
    ]
    return f"""## One key's texts and grammars take long

The real model; four clients of one key send texts of 600 KB to 8 MB, 2,048 texts for embeddings at once, and grammars of 6,000 words.
What another key notices, in ms: answers of /livez, pauses of its stream, and requests for two tokens with a new grammar. Everything shares
the cores, also who measures.

| flood | /livez p99 | pauses p99 | longest | two tokens, median | longest | answers to the flood |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}"""


def _seeded_bugs(result: Part) -> str:
    rows = [f"| {name} | {'yes' if is_noticed else '**no**'} |" for name, is_noticed in result.items()]
    return f"""## Known bugs put into the sources

{sum(result.values())} of {len(result)} are noticed by the tests of the part they are in.

| bug | noticed |
|---|---|
{chr(10).join(rows)}"""


def _replicas(result: Part) -> str:
    gaps, recovered = sorted(result["gap_seconds"]), sorted(result["recovery_seconds"])
    return f"""## Replicas killed under load

Two replicas on Ray Serve ([how](scaling.md#replicas-on-ray-serve)), 16 streams of all kinds at any time, each compared with what it
is without kills: text, token ids, log-probabilities, how it ends. The kills hit an engine process, the actor that owns
it and the replica of Serve that owns the actor, in turn. The streams of a lost replica go on with the other one while it restarts.

| | |
|---|---|
| SIGKILL to an engine | {result["num_engine_kills"]} |
| SIGKILL to its actor | {result["num_actor_kills"]} |
| SIGKILL to a replica of Serve | {result["num_replica_kills"]} |
| answers | {result["num_answers"]} |
| **lost, refused, cut or changed** | **{len(result["wrong"])}** |
| sequences given to the other replica | {result["moved"]:.0f} |
| longest pause of a stream, median of all streams | {median(gaps):.2f} s |
| longest pause of any stream | {gaps[-1]:.2f} s; without kills {result["undisturbed_gap_seconds"]:.2f} s |
| from the kill to both replicas at work | median {median(recovered):.1f} s, longest {recovered[-1]:.1f} s |"""


def _spill(result: Part) -> str:
    with_file, without = result["with"], result["without"]
    first = {name: median(result["restarts"][name]) for name in ("with", "without")}
    again = {name: result[name]["num_recomputed_tokens"] for name in ("with", "without")}
    per_token = {name: again[name] / result[name]["num_replayed_tokens"] for name in again}
    return f"""## Blocks that outlive the engine

`--kv-spill` keeps cached blocks in a file ([how](decisions/0063-blocks-in-a-file.md)): each block is written when it becomes
cached, by a thread; a new engine reads it where its own cache misses, verifies the copy and then uses it. A restart: a
prompt of {result["num_prompt_tokens"]:,} tokens is asked for again. Kills: SIGKILL at random moments under {result["num_streams"]} streams, with a standby; each
answer is compared with that of an undisturbed run, tokens and log-probabilities, bit for bit.

| | without the file | with it |
|---|---|---|
| first token after a restart | {first["without"]:.2f} s | {first["with"]:.2f} s ({first["with"] / first["without"]:.1%}) |
| SIGKILL | {without["num_kills"]} | {with_file["num_kills"]} |
| answers | {without["num_answers"]} | {with_file["num_answers"]} |
| **lost, cut or changed** | **{without["num_wrong"]}** | **{with_file["num_wrong"]}** |
| sequences given to another engine | {without["num_replayed"]:,} | {with_file["num_replayed"]:,} |
| tokens they had | {without["num_replayed_tokens"]:,} | {with_file["num_replayed_tokens"]:,} |
| **of these computed again** | {again["without"]:,} ({per_token["without"]:.0%}) | **{again["with"]:,} ({per_token["with"]:.1%})** |
| from the kill until every stream is in a batch again, median | {without["median_seconds"]:.1f} s | {with_file["median_seconds"]:.1f} s |

Computed again is what no full block of the file has: the rest of a text after its last full block, and blocks that the thread
had not written yet. {result.get("remark", "")}A file that is damaged, cut off, of another model or on a full disk costs time and changes no answer
(`tests/scheduler/test_spill.py`)."""


def _ranks(result: Part) -> str:
    detected, recovered = sorted(result["detection_seconds"]), sorted(result["recovery_seconds"])
    harmed = ", ".join(f"rank {rank}: {num}" for rank, num in sorted(result["num_harmed"].items()))
    return f"""## A rank killed under load

A tiny model with `--tensor-parallel 3`, 16 of the streams above, each compared with what it is without faults: text, token ids,
log-probabilities, how it ends. A random rank is killed each time, so
the kills below are those of all ranks together; the others end with it, and a new engine with new ranks is started. All
ranks are on one machine.

| | |
|---|---|
| SIGKILL | {result["num_kills"]} ({harmed}) |
| answers | {result["num_answers"]} |
| **lost, refused, cut or changed** | **{len(result["wrong"])}** |
| sequences given to another engine | {result["replayed"]:.0f} |
| from the kill to `/readyz` saying so | median {median(detected):.2f} s, longest {detected[-1]:.2f} s |
| from the kill to the next engine at work | median {median(recovered):.1f} s, longest {recovered[-1]:.1f} s |
| share of the KV pool in use at the end | {result["used"]:g} |"""


_SECTIONS = {
    "engine_faults": _engine_faults,
    "arrivals": _arrivals,
    "ranks": _ranks,
    "spill": _spill,
    "replicas": _replicas,
    "tiny_pool": _tiny_pool,
    "batch_kills": _batch_kills,
    "overload": _overload,
    "long_prompt": _long_prompt,
    "shutdown": _shutdown,
    "cuts": _cuts,
    "body_flood": _body_flood,
    "memory": _memory,
    "key_floods": _key_floods,
    "input_floods": _input_floods,
    "seeded_bugs": _seeded_bugs,
}


def _source(name: str, part: Part) -> str:
    machine = part["machine"]
    return (
        f"<sub>`python -m tests.campaign {name}`, {part['date']}, commit {part['commit']}, {part['seconds']:.0f} s, "
        f"{machine['processor']}, {machine['cores']} cores.</sub>"
    )


def _draw_goodput(result: Part, file: Path) -> None:
    """Write bars for the answers a second at each rate of arrivals, with a line at the capacity."""
    levels, height, left, bottom = result["levels"], 150, 40, 176
    most = max(result["peak"], *(level["goodput"] for level in levels))
    pitch = (360 - left) / len(levels)
    parts = [text(0, 14, "answers a second", is_bold=True), line([(left - 4, bottom), (360, bottom)])]
    for index, level in enumerate(levels):
        x, tall = left + pitch * index + 6, height * level["goodput"] / most
        parts += [
            box(x, bottom - tall, pitch - 12, tall, BLUE),
            text(x + pitch / 2 - 6, bottom - 9, f"{level['goodput']:.1f}", "middle"),
            text(x + pitch / 2 - 6, bottom + 18, f"{level['times_capacity']:g}", "middle"),
        ]
    capacity = bottom - height * result["peak"] / most
    parts += [
        line([(left - 4, capacity), (360, capacity)], is_dashed=True),
        text(left - 8, capacity + 5, f"{result['peak']:g}", "end"),
        text(left, bottom + 38, "arrivals, times the capacity (the dashed line)"),
    ]
    file.write_text(figure(bottom + 46, parts), "utf-8")
