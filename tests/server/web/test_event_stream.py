"""Streams of events as the page reads them: what comes begins a new wait, and silence ends the stream."""

from pathlib import Path

from tests.support.javascript import NEEDS_NODE, run_module

pytestmark = NEEDS_NODE

# The wait for the next part is a timer that never fires by itself here.
PROGRAM = """import { events } from "./api.js";

let source;
const stream = new ReadableStream({ start(controller) { source = controller; } });
const poll = globalThis.setTimeout;
const waits = new Map(); // milliseconds, by what is called after them
globalThis.setTimeout = (work, ms) => (waits.set(work, ms), work);
globalThis.clearTimeout = (work) => waits.delete(work);
const until = async (isTrue) => {
  for (let turn = 0; turn < 1000 && !isTrue(); turn++) await new Promise((done) => poll(done, 10));
  return isTrue();
};
const payloads = [];
let error = null;
let isOver = false;
const read = async () => {
  for await (const payload of events(new Response(stream))) payloads.push(payload);
};
read()
  .catch((failure) => (error = [failure.name, failure.code, failure.message]))
  .finally(() => (isOver = true));
const renewed = [await until(() => waits.size === 1)];
for (const text of given.parts) {
  const [before] = waits.keys();
  source.enqueue(new TextEncoder().encode(text));
  renewed.push(await until(() => waits.size === 1 && !waits.has(before)));
}
const [[work, ms]] = waits;
const isAlive = !isOver;
if (given.isSilent) work();
else source.close();
await until(() => isOver);
return { payloads, renewed, ms, isAlive, isOver, error, waits: waits.size };"""

PARTS = [": keep-alive\n\n", "data: 1\n\nda", "ta: 2\n\n", ": keep-alive\n\n"]
READ = {"payloads": ["1", "2"], "renewed": [True] * 5, "ms": 60_000, "isAlive": True, "isOver": True}


def test_a_stream_ends_when_nothing_comes_for_a_minute(tmp_path: Path) -> None:
    found = run_module(tmp_path, PROGRAM, {"parts": PARTS, "isSilent": True})
    error = ["ApiError", "silence", "The server sent nothing for 60 s."]
    assert found == READ | {"error": error, "waits": 0}


def test_comments_are_no_silence_and_no_wait_is_left_at_the_end(tmp_path: Path) -> None:
    found = run_module(tmp_path, PROGRAM, {"parts": PARTS, "isSilent": False})
    assert found == READ | {"error": None, "waits": 0}
