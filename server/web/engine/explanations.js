// What the popover says about one thing: a block, a request, a step, the pool, an event.
import { counted } from "../nodes.js";
import { sentence } from "./event_list.js";
import { filled } from "./replay.js";
import { stateOf } from "./requests.js";
import { clock, duration } from "./scale.js";
import { tokenRange } from "./block_table.js";

/** Return [title, facts, lesson] of what was pressed, null if it is no more; see Explainer.show. */
export function explanationOf(what, scene) {
  switch (what.kind) {
    case "used":
    case "shared":
      return ofBlock(what, scene);
    case "step":
      return ofStep(what.entry, scene);
    case "pool":
    case "free":
    case "cached":
      return ofPool(what.kind, scene);
    case "event":
      return ofEvent(what.event);
    default:
      return ofRequest(what, scene);
  }
}

const MARK =
  "Blocks with equal marks hold equal text after an equal beginning. The mark is made of the hash, for this view only.";

function ofBlock({ request, index }, { rows, owners, replay, entry, blockSize }) {
  const row = rows?.get(request);
  if (!row || index >= row.blocks.length) return null;
  const block = row.blocks[index];
  const holders = owners.get(block);
  const since = row.since[index];
  const mark = replay.markOf(block, entry.step);
  const isPrompt = (index + 1) * blockSize <= row.numPrompt;
  const part = isPrompt ? "prompt" : index * blockSize < row.numPrompt ? "prompt and answer" : "answer";
  const numComputed = filled(row, index, blockSize);
  const facts = [
    ["Belongs to", holders.length > 1 ? `requests ${holders.join(", ")}` : `request ${request}`],
    ["Tokens", `${tokenRange(row, index, blockSize)}, of the ${part}; ${numComputed} of ${blockSize} are computed`],
    ["Since", since === null ? "before this page was opened" : sinceText(since, { replay, entry })],
    ["Hash", mark ?? (numComputed < blockSize ? "none: only full blocks have one" : "not known here")],
  ];
  if (mark) facts.push(["", MARK]);
  return [`Block ${block}`, facts, holders.length > 1 ? "shared" : "used"];
}

function sinceText(step, { replay, entry }) {
  const taken = replay.entries.find((one) => one.step === step);
  const ago = taken ? `, ${duration(Math.max(entry.time - taken.time, 0))} before the step shown` : "";
  return `step ${counted(step)}${ago}`;
}

function ofRequest(what, { shown, replay }) {
  const { request, part } = what;
  const span = replay.spans.byRequest.get(request);
  const now = shown.get(request);
  const facts = [];
  if (now) facts.push(["Now", stateOf(now)]);
  else if (span?.end) facts.push(["Ended", clock(span.end)]);
  if (now?.limit) {
    const numAnswer = counted(Math.max(now.numTokens - now.numPrompt, 0));
    const limit = `at most ${counted(now.limit)} together`;
    facts.push(["Tokens", `${counted(now.numPrompt)} of the prompt, ${numAnswer} of the answer, ${limit}`]);
  }
  if (now?.blocks) facts.push(["Blocks", counted(now.blocks.length)]);
  for (const one of span?.parts ?? []) {
    const length = (one.to ?? replay.entries.at(-1)?.time ?? one.from) - one.from;
    const mark = one === part ? " (this part)" : "";
    const soFar = one.to === null ? " so far" : "";
    facts.push([NAMES[one.kind], `from ${clock(one.from)}, ${duration(Math.max(length, 0))}${soFar}${mark}`]);
  }
  return [`Request ${request}`, facts, part?.kind ?? now?.phase ?? span?.parts.at(-1)?.kind ?? "answer"];
}

const NAMES = { queued: "Waited", prompt: "Prompt", answer: "Answer", preempted: "Preempted" };

function ofStep(entry, { replay }) {
  const works = replay.entries.filter((one) => one.ms > 0);
  const mean = works.reduce((sum, one) => sum + one.ms, 0) / Math.max(works.length, 1);
  return [
    `Step ${counted(entry.step)}`,
    [
      ["Ended", clock(entry.time)],
      ["Took", `${duration(entry.ms)}; the mean of all steps here is ${duration(mean)}`],
      ["Computed", `${counted(entry.numPrefill)} prompt and ${counted(entry.numDecode)} answer tokens`],
      ["Requests", `${counted(entry.numRunning)} running, ${counted(entry.numWaiting)} waiting`],
    ],
    "step",
  ];
}

function ofPool(kind, { entry, replay, blockSize }) {
  const { numUsed, numCached } = entry;
  const tokens = (number) => `${counted(number)} blocks, ${counted(number * blockSize)} tokens`;
  const facts = [
    ["In use", tokens(numUsed)],
    ["Cached", tokens(numCached)],
    ["Free", tokens(replay.numBlocks - numUsed - numCached)],
  ];
  return ["KV pool", facts, kind === "pool" ? "used" : kind];
}

function ofEvent(event) {
  const facts = [["When", `${clock(event.time)}, step ${counted(event.step)}`]];
  return [sentence(event), facts, event.kind];
}
