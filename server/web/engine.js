// The engine view: pool, batch, steps and events of the latest snapshot or of an earlier one.
import { complaint, events, headers, trouble } from "./frame.js";
import { teach } from "./lessons.js";

const by = (id) => document.getElementById(id);
const MAX_SNAPSHOTS = 600; // two and a half minutes
const MAX_BARS = 160;
const MAX_EVENTS = 40;
const STATES = ["free", "cached", "used", "shared"];
const CELL = 10; // pixels

export function startEngine() {
  const snapshots = [];
  let shown = -1; // index of the snapshot shown
  let stepAt = -1; // index of the step shown in that snapshot, -1 if it has no steps
  let isDrawing = false; // a frame is requested
  let isPaused = false;
  let stop = null; // AbortController of the subscription
  const lines = new WeakMap(); // list items by event
  let cells = null; // as drawn: states, owners, columns

  async function run(signal) {
    while (!signal.aborted) {
      try {
        const response = await fetch("/v1/engine/events", { headers: headers(), signal });
        if (!response.ok) throw new Error(await complaint(response));
        trouble("");
        for await (const payload of events(response)) take(JSON.parse(payload));
      } catch (error) {
        if (error.name !== "AbortError") trouble(error.message);
      }
      await new Promise((done) => setTimeout(done, 1000));
    }
  }

  function take(snapshot) {
    if (isPaused && snapshots.length >= MAX_SNAPSHOTS) return; // keep the snapshot shown
    snapshots.push(Object.assign(snapshot, { receivedAt: performance.now() }));
    if (snapshots.length > MAX_SNAPSHOTS) snapshots.shift();
    by("snapshot").max = snapshots.length - 1;
    if (isPaused && shown >= 0) showAge();
    else show(snapshots.length - 1);
  }

  function showAge() {
    const since = snapshots.slice(shown + 1).reduce((sum, snapshot) => sum + snapshot.steps.length, 0);
    const ago = since + snapshots[shown].steps.length - 1 - stepAt;
    const seconds = (snapshots.at(-1).receivedAt - snapshots[shown].receivedAt) / 1000;
    const text = ago || seconds ? `${ago} ${ago === 1 ? "step" : "steps"}, ${seconds.toFixed(1)} s ago` : "now";
    by("snapshot").value = shown;
    by("snapshot").setAttribute("aria-valuetext", text);
    by("snapshot-text").textContent = text;
  }

  const shownStep = () => snapshots[shown].steps[stepAt]?.[0] ?? snapshots[shown].step;

  /** Show a snapshot at one of its steps, by default the last. */
  function show(index, step = Infinity) {
    shown = Math.min(Math.max(index, 0), snapshots.length - 1);
    if (shown < 0) return;
    stepAt = Math.min(step, snapshots[shown].steps.length - 1);
    showAge();
    if (isDrawing) return; // the requested frame draws it
    isDrawing = true;
    requestAnimationFrame(() => {
      isDrawing = false;
      draw(snapshots[shown]);
    });
  }

  /** Show the previous or next step, which may be in another snapshot. */
  function move(way) {
    pause(true);
    if (snapshots[shown]?.steps[stepAt + way]) return show(shown, stepAt + way);
    let index = shown + way;
    while (snapshots[index]?.steps.length === 0) index += way; // the engine was idle
    if (snapshots[index]) show(index, way > 0 ? 0 : Infinity);
  }

  function pause(paused) {
    isPaused = paused;
    by("pause").setAttribute("aria-pressed", String(paused));
    if (!paused) show(snapshots.length - 1);
  }

  function draw(snapshot) {
    const [step, numPrefill, numDecode, ms] = snapshot.steps[stepAt] ?? [snapshot.step, 0, 0, 0];
    const work = ms ? `: ${numPrefill} prompt and ${numDecode} generated tokens in ${ms.toFixed(1)} ms` : "";
    const isLast = step === snapshot.step; // pool, batch and queue are those after the snapshot's last step
    const after = isLast ? "" : `After step ${snapshot.step}, as shown below: `;
    by("step-column").textContent = isLast ? "This step" : `Step ${snapshot.step}`;
    by("numbers").textContent =
      `Step ${step}${work}. ${after}${snapshot.num_running} running, ${snapshot.num_waiting} waiting. ` +
      `${snapshot.num_used_blocks} of ${snapshot.num_blocks} blocks used, ${snapshot.num_cached_blocks} free ones with a cached prefix; ` +
      `a block has ${snapshot.block_size} tokens, a cell ${snapshot.blocks_per_cell} ${snapshot.blocks_per_cell === 1 ? "block" : "blocks"}.`;
    drawPool(snapshot);
    drawBatch(snapshot);
    drawSteps();
    drawEvents();
  }

  function drawPool(snapshot) {
    const canvas = by("pool");
    const columns = Math.max(Math.floor(canvas.clientWidth / CELL), 1);
    const rows = Math.ceil(snapshot.cell_states.length / columns);
    if (canvas.width !== columns * CELL || canvas.height !== rows * CELL) {
      canvas.width = columns * CELL;
      canvas.height = rows * CELL;
    }
    const owners = snapshot.cell_owners.flatMap(([owner, count]) => Array(count).fill(owner));
    cells = { states: snapshot.cell_states, owners, columns };
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (let index = 0; index < owners.length; index++) {
      context.fillStyle = colour(STATES[snapshot.cell_states[index]], owners[index]);
      context.fillRect((index % columns) * CELL, Math.floor(index / columns) * CELL, CELL - 1, CELL - 1);
    }
  }

  function colour(state, owner) {
    if (state === "free") return "#88888833";
    if (state === "cached") return "#7fb8c9";
    if (state === "shared") return "#b050c0";
    return `hsl(${(owner * 47) % 280} 55% 45%)`;
  }

  function drawBatch(snapshot) {
    const rows = [
      ...snapshot.running.map((row) => [row, row[3] < row[1] ? "prefill" : "decode"]),
      ...snapshot.waiting.map((row) => [row, "waiting"]),
    ];
    const known = new Map([...by("batch").children].map((row) => [row.dataset.request, row]));
    const nodes = rows.map(([[number, numPrompt, numTokens, numComputed, maxTokens, numBlocks, numStep, reason], phase]) => {
      const row = known.get(String(number)) ?? newRow(number);
      row.dataset.lesson = phase;
      const state = phase === "waiting" ? `waiting: ${reason ?? "not scheduled yet"}` : phase;
      const sizes = [numStep, `${numComputed} of ${numTokens}`, `${numTokens} of max. ${numPrompt + maxTokens}`, numBlocks];
      [state, ...sizes].forEach((text, index) => (row.children[index + 1].textContent = text));
      return row;
    });
    update(by("batch"), nodes);
  }

  function newRow(number) {
    const row = document.createElement("tr");
    row.dataset.request = number;
    for (let index = 0; index < 6; index++) row.append(document.createElement("td"));
    row.firstChild.append(buttonOf(number));
    for (const cell of [...row.children].slice(2)) cell.className = "number";
    return row;
  }

  function buttonOf(text) {
    const press = document.createElement("button");
    press.type = "button";
    press.textContent = text;
    return press;
  }

  /** Set the children of a node; existing ones are reused, so that they can be clicked meanwhile. */
  function update(parent, nodes) {
    const wanted = new Set(nodes);
    for (const node of [...parent.children]) if (!wanted.has(node)) node.remove();
    nodes.forEach((node, index) => {
      if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
    });
  }

  function drawSteps() {
    const steps = [];
    for (let index = shown; index >= 0 && steps.length < MAX_BARS; index--)
      steps.unshift(...(index === shown ? snapshots[index].steps.slice(0, stepAt + 1) : snapshots[index].steps));
    const bars = steps.slice(-MAX_BARS);
    const canvas = by("steps");
    const context = canvas.getContext("2d");
    const longest = Math.max(...bars.map((step) => step[3]), 1);
    const width = canvas.width / MAX_BARS;
    context.clearRect(0, 0, canvas.width, canvas.height);
    bars.forEach(([, prefill, decode, ms], index) => {
      const height = (ms / longest) * (canvas.height - 14);
      const fraction = prefill / Math.max(prefill + decode, 1);
      context.fillStyle = "#3a78c2";
      context.fillRect(index * width, canvas.height - height, width - 1, height);
      context.fillStyle = "#c98a2b";
      context.fillRect(index * width, canvas.height - height, width - 1, height * fraction);
    });
    context.fillStyle = getComputedStyle(document.body).color;
    context.fillText(`${longest.toFixed(0)} ms`, 2, 10);
  }

  function drawEvents() {
    const step = shownStep();
    const recent = snapshots[shown].events.filter((event) => event.step <= step);
    const current = new Set(recent.filter((event) => event.step === step));
    for (let index = shown - 1; index >= 0 && recent.length < MAX_EVENTS; index--) recent.unshift(...snapshots[index].events);
    const latest = recent.slice(-MAX_EVENTS).reverse();
    update(by("events"), latest.map(lineOf));
    for (const event of latest) lineOf(event).ariaCurrent = current.has(event) ? "step" : null;
  }

  function lineOf(event) {
    if (!lines.has(event)) {
      const line = document.createElement("li");
      line.dataset.lesson = event.kind;
      line.dataset.step = event.step;
      const press = buttonOf(event.request ? `${event.kind} ${event.request}` : event.kind);
      line.append(press, ` ${event.text}`);
      lines.set(event, line);
    }
    return lines.get(event);
  }

  by("engine").addEventListener("click", ({ target }) => {
    const lesson = target.closest("[data-lesson]"); // of the legend, a row, an event
    if (lesson) teach(lesson.dataset.lesson);
  });
  by("pool").addEventListener("click", (event) => {
    if (!cells) return;
    const scale = by("pool").width / by("pool").clientWidth;
    const index = Math.floor((event.offsetY * scale) / CELL) * cells.columns + Math.floor((event.offsetX * scale) / CELL);
    if (index >= 0 && index < cells.states.length) teach(STATES[cells.states[index]]);
  });
  by("pause").addEventListener("click", () => pause(!isPaused));
  by("back").addEventListener("click", () => move(-1));
  by("forward").addEventListener("click", () => move(1));
  by("snapshot").addEventListener("input", () => (pause(true), show(Number(by("snapshot").value))));

  return {
    /** Subscribe or unsubscribe: a hidden view must not cost anything. */
    subscribe(on) {
      if (on && !stop) {
        stop = new AbortController();
        run(stop.signal);
      } else if (!on && stop) {
        stop.abort();
        stop = null;
      }
    },
  };
}
