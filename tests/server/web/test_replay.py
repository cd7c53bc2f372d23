"""The parts of the engine view that need no browser: replay, bars of requests, colours, scales."""

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from caravan.scheduler.messages import EngineSnapshot, SequenceEvent, StepOutput
from caravan.scheduler.snapshots import Snapshots
from caravan.server.operations.guide import anchor_of
from caravan.server.operations.live_view import LiveView
from caravan.server.operations.source_code import FILES
from tests.scheduler.requests import FakeClock, make_request
from tests.support.javascript import NEEDS_NODE, WEB, run_module
from tests.support.scheduler_steps import make_scheduler, step

pytestmark = NEEDS_NODE

ROOT = Path(__file__).parents[3]
Rows = list[tuple[int, int, int, list[int]]]

REPLAY = """import { Replay } from "./engine/replay.js";

const replay = new Replay();
for (const view of given.views) replay.take(view);
const rowsOf = (rows) => rows && [...rows.values()].map((row) => [row.id, row.numTokens, row.numComputed, row.blocks]);
const found = replay.entries.map((entry, index) => [entry.step, rowsOf(replay.stateAt(index))]);
const spans = [...replay.spans.byRequest.values()].map((span) => [span.id, span.parts, span.end]);
return { found, spans, marks: [...replay.marks] };"""


class Recording:
    """What the page gets of a scheduler, and what was true after each step."""

    def __init__(self, **limits: int) -> None:
        self.clock = FakeClock()
        self.scheduler = make_scheduler(**limits)
        self.live_view = LiveView(lambda _: None)
        self.subscriber = self.live_view.subscribe()
        self.snapshots = Snapshots(self._send, self.clock)
        self.snapshots.subscribe(0.25)
        self.views: list[dict[str, Any]] = []
        self.truth: dict[int, Rows] = {}
        self.steps: dict[str, dict[int, int]] = {"joined": {}, "ended": {}, "preempted": {}}

    def _send(self, snapshot: EngineSnapshot) -> None:
        self.live_view.on_snapshot(snapshot)
        body = self.subscriber._bodies.popleft()
        assert body is not None
        self.views.append(json.loads(body.partition(b"data: ")[2]))

    def add(self, number: int, prompt: list[int], max_tokens: int) -> None:
        self.scheduler.add(make_request(number, prompt, max_tokens=max_tokens))
        self.snapshots.queue(number)

    def step(self, token_id: int) -> StepOutput:
        self.clock.seconds += 0.03
        _, output = step(self.scheduler, token_id)
        self.live_view.on_step(output)
        self.truth[output.stats.step] = [
            (one.request.request_id, one.num_tokens, one.num_computed_tokens, [*one.block_table])
            for one in self.scheduler.running
        ]
        self.snapshots.after_step(self.scheduler, output.stats)
        return output


def random_recording(seed: int, num_steps: int = 400) -> Recording:
    dice = random.Random(seed)
    recording = Recording(num_blocks=14, max_num_seqs=5)
    for number in range(1, num_steps):
        if dice.random() < 0.25:
            prompt = [dice.randrange(2) for _ in range(dice.randrange(1, 14))]
            recording.add(number, prompt, dice.randrange(1, 18))
        recording.step(dice.randrange(2))
    while recording.scheduler.has_work:
        recording.step(1)
    recording.clock.seconds += 1
    recording.snapshots.after_step(recording.scheduler, recording.scheduler.stats())
    return recording


@pytest.mark.parametrize("seed", range(3))
def test_each_step_is_rebuilt_exactly(seed: int, tmp_path: Path) -> None:
    recording = random_recording(seed)
    assert any(one.preempted for one in changes_of(recording))
    found = run_module(tmp_path, REPLAY, {"views": recording.views})["found"]
    assert len(found) > 300
    by_step = {number: rows for number, rows in found if rows is not None}
    assert len(by_step) > 300
    for number, rows in by_step.items():
        assert sorted(map(tuple, rows)) == sorted(recording.truth[number]), number


def changes_of(recording: Recording) -> list[Any]:
    class Change:
        def __init__(self, fields: list[Any]) -> None:
            (self.step, self.age, *_, self.queued, self.joined, self.moved, self.ended, self.preempted, _) = fields

    return [Change(fields) for view in recording.views for fields in view["changes"]]


def test_a_missing_snapshot_makes_steps_unknown_until_the_next_tables(tmp_path: Path) -> None:
    recording = random_recording(7)
    whole = [index for index, view in enumerate(recording.views) if view["tables"] is not None]
    assert len(whole) > 2
    views = recording.views[: whole[0] + 2] + recording.views[whole[0] + 3 :]
    found = run_module(tmp_path, REPLAY, {"views": views})["found"]
    missing = recording.views[whole[0] + 3]["changes"][0][0]
    known_again = recording.views[whole[1]]["step"]
    assert all(rows is None for number, rows in found if missing <= number < known_again)
    for number, rows in found:
        if rows is not None:
            assert sorted(map(tuple, rows)) == sorted(recording.truth[number]), number
    assert any(rows is not None for number, rows in found if number > known_again)


def test_every_request_has_its_bars_and_they_end(tmp_path: Path) -> None:
    recording = random_recording(3)
    spans = run_module(tmp_path, REPLAY, {"views": recording.views})["spans"]
    assert len(spans) > 60
    kinds, following = set(), []
    for number, parts, end in spans:
        assert end is not None, number
        assert parts[-1]["to"] is not None
        kinds |= {part["kind"] for part in parts}
        for before, after in itertools.pairwise(parts):
            assert before["from"] <= before["to"] == after["from"]
        following += [after["kind"] for before, after in itertools.pairwise(parts) if before["kind"] == "preempted"]
    assert following
    assert {*following} <= {"prompt", "answer"}  # with one token to compute again it is an answer at once
    assert kinds == {"queued", "prompt", "answer", "preempted"}


def test_a_replaced_engine_queues_all_requests_again(tmp_path: Path) -> None:
    recording = Recording(num_blocks=20)
    recording.add(1, [1, 2, 3], 20)
    for _ in range(9):
        recording.step(1)
    recording.live_view.on_replay(1, 0.5)
    recording.snapshots.subscribe(0.25)
    for _ in range(9):
        recording.step(1)
    result = run_module(tmp_path, REPLAY, {"views": recording.views})
    ((_, parts, end),) = result["spans"]
    assert end is None
    assert "queued" in [part["kind"] for part in parts[1:]]
    assert result["found"][-1][1] is not None


def test_full_blocks_get_marks(tmp_path: Path) -> None:
    recording = Recording(num_blocks=20)
    recording.add(1, [1, 2, 3, 4, 5], 6)
    for _ in range(5):
        recording.step(1)
    recording.clock.seconds += 1
    table = recording.scheduler.running[0].block_table[:2]
    recording.snapshots.after_step(recording.scheduler, recording.scheduler.stats())
    marks = dict(run_module(tmp_path, REPLAY, {"views": recording.views})["marks"])
    assert marks.keys() == {*table}
    assert all(re.fullmatch("[0-9a-f]{8}", mark) for ((_, mark),) in marks.values())


def test_colours_of_requests_on_the_screen_never_repeat(tmp_path: Path) -> None:
    program = """import { NUM_LOOKS, assign, look, lookName } from "./engine/colours.js";

let slots = new Map();
const turns = given.turns.map((ids) => [...(slots = assign(ids, slots))]);
const looks = Array.from({ length: NUM_LOOKS }, (_, slot) => [JSON.stringify(look(slot)), lookName(slot)]);
return { turns, looks };"""
    dice = random.Random(1)
    turns, ids = [], [*range(1, 30)]
    for number in range(100):
        ids = [one for one in ids if dice.random() < 0.9] + [1000 + number]
        turns.append(ids)
    result = run_module(tmp_path, program, {"turns": turns})
    before: dict[int, int] = {}
    for ids, pairs in zip(turns, result["turns"], strict=True):
        slots = dict(pairs)
        assert {*slots} == {*ids}
        assert len({*slots.values()}) == len(ids)
        assert all(slots[one] == before[one] for one in ids if one in before)
        assert max(slots.values()) < 60
        before = slots
    assert len({one for one, _ in result["looks"]}) == len({name for _, name in result["looks"]}) == 256
    assert all(json.loads(one)["pattern"] == "plain" for one, _ in result["looks"][:8])
    assert all(json.loads(one)["pattern"] != "plain" for one, _ in result["looks"][8:64])


def test_single_long_steps_do_not_flatten_a_chart(tmp_path: Path) -> None:
    program = """import { cap, duration, roundStep } from "./engine/scale.js";

return {
  cap: given.map(cap),
  steps: [roundStep(30, 10), roundStep(7, 3), roundStep(0.9, 3), roundStep(557, 3)],
  texts: [0.5, 12.34, 557, 1250, 61000].map(duration),
};"""
    decode = [20.0 + index % 3 for index in range(159)]
    result = run_module(tmp_path, program, [[*decode, 557.0], decode, [5.0, 500.0], []])
    assert result["cap"] == [22.0, 22.0, 500.0, 0]
    assert result["steps"] == [5, 5, 0.5, 200]
    assert result["texts"] == ["0.5 ms", "12.3 ms", "557 ms", "1.25 s", "61.0 s"]


def test_a_popover_never_covers_what_it_explains(tmp_path: Path) -> None:
    program = """import { spotFor } from "./engine/popover.js";

const rect = ([left, top, right, bottom]) => ({ left, top, right, bottom, width: right - left, height: bottom - top });
return given.places.map((place) => spotFor(rect(place), given.box, given.room));"""
    box, room = {"width": 416, "height": 300}, {"width": 1280, "height": 500}
    places = [
        [600, 40, 624, 64],
        [600, 440, 624, 464],
        [600, 230, 624, 254],
        [1200, 230, 1224, 254],
        [0, 200, 1280, 260],
    ]
    found = run_module(tmp_path, program, {"places": places, "box": box, "room": room})
    assert [one["maxHeight"] for one in found] == [None, None, None, None, 224]
    for (left, top, right, bottom), spot in zip(places, found, strict=True):
        height = spot["maxHeight"] or box["height"]
        is_beside = spot["left"] >= right or spot["left"] + box["width"] <= left
        assert is_beside or spot["top"] >= bottom or spot["top"] + height <= top
        assert 0 <= spot["left"] <= room["width"] - box["width"]
        assert 0 <= spot["top"] <= room["height"] - height


def test_the_axis_of_the_pool_ends_with_what_is_held(tmp_path: Path) -> None:
    program = """import { poolAxis } from "./engine/timeline.js";

return given.map(([used, cached, all]) => Object.values(poolAxis([{ numUsed: used, numCached: cached }], all)));"""
    held = [[31, 0, 32_184], [20, 140, 32_184], [30, 18, 48], [0, 0, 48]]
    assert run_module(tmp_path, program, held) == [[20, 40], [100, 200], [50, 48], [1, 1]]


def test_bars_share_lanes_and_those_without_one_are_counted(tmp_path: Path) -> None:
    program = """import { inLanes } from "./engine/timeline.js";

const spans = given.map(([id, from, end]) => ({ id, parts: [{ kind: "answer", from, to: end }], end }));
const { placed, leftOut, numLanes } = inLanes(spans, 2);
return { lanes: placed.map(({ span, lane }) => [span.id, lane]), leftOut, numLanes };"""
    spans = [[1, 0, 10], [2, 5, None], [3, 10, 20], [4, 12, 15]]
    assert run_module(tmp_path, program, spans) == {"lanes": [[1, 0], [2, 1], [3, 0]], "leftOut": 1, "numLanes": 2}


def test_events_are_sentences(tmp_path: Path) -> None:
    live_view = LiveView(lambda _: None)
    subscriber = live_view.subscribe()
    kinds = ["wait", "read", "join", "chunk", "preempt", "abort"]
    events = [SequenceEvent(14, kind, 3, 5, "batch full" if kind == "wait" else None) for kind in kinds]  # type: ignore[arg-type]
    recording = Recording()
    recording.add(1, [1], 1)
    output = recording.step(1)
    live_view.on_step(StepOutput(outputs=output.outputs, stats=output.stats, events=events))
    live_view.note("the engine was replaced")
    Snapshots(live_view.on_snapshot, FakeClock()).after_step(recording.scheduler, output.stats)
    body = subscriber._bodies.popleft()
    assert body is not None
    view = json.loads(body.partition(b"data: ")[2])
    program = """import { sentence } from "./engine/event_list.js";

return given.map(sentence);"""
    assert run_module(tmp_path, program, view["events"]) == [
        "14 waits: the batch is full",
        "14 reads 3 tokens from the spill file",
        "14 starts: prefix hit, 3 tokens from the cache",
        "14 reads its prompt: 3 tokens computed, 5 so far",
        "14 is preempted: 3 tokens to compute again",
        "14 was stopped",
        "1 ended: its limit of tokens",
        "the engine was replaced",
    ]


def test_every_lesson_has_its_chapter_and_its_place_in_the_code(tmp_path: Path) -> None:
    lessons = run_module(tmp_path, 'import { LESSONS } from "./engine/lessons.js";\n\nreturn LESSONS;')
    guide = (ROOT / "docs" / "llama2-from-scratch.md").read_text("utf-8")
    anchors = {anchor_of(line.lstrip("# ")) for line in guide.splitlines() if line.startswith("## ")}
    assert len(lessons) > 15
    for lesson in lessons.values():
        path, symbol = lesson["code"]
        assert path in FILES
        assert re.search(rf"^ *(def|class) {symbol}\b", (ROOT / path).read_text("utf-8"), re.MULTILINE), symbol
        assert anchor_of(lesson["chapter"]) in anchors
    of_learn = [(WEB / "learn" / name).read_text("utf-8") for name in ("stops.js", "reading_stops.js")]
    stops = re.findall(r'"((?:model|scheduler|server)/[\w/]+\.py)"', "".join(of_learn))
    linked = re.findall(r"\]\(\.\./([\w/]+\.py)\)", guide)
    assert {*stops, *linked, *(lesson["code"][0] for lesson in lessons.values())} == {*FILES}


def test_modules_of_the_page_are_small() -> None:
    for folder in ("engine", "learn", "server"):
        for path in (WEB / folder).glob("*.js"):
            lines = path.read_text("utf-8").splitlines()
            assert len(lines) < 300, path
            assert max(map(len, lines)) <= 120, path
