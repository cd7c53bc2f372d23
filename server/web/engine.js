// The engine live: pool, batch, steps and events of the newest view, or of an earlier one.
import { complaint, events, headers, trouble } from "./frame.js";
import { teach } from "./lessons.js";

const by = (id) => document.getElementById(id);
const MAX_VIEWS = 600; // two and a half minutes
const MAX_BARS = 160;
const MAX_EVENTS = 40;
const STATES = ["free", "cached", "used", "shared"];
const CELL = 10; // pixels

export function startEngine() {
  const views = [];
  let shown = -1; // index of the view on the screen
  let stepAt = -1; // index of the step on the screen in that view's steps; -1: it has none
  let isDrawing = false; // before the next frame
  let isPaused = false;
  let stop = null; // AbortController while we watch
  const lines = new WeakMap(); // of events
  let cells = null; // what is drawn: states, owners, columns

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

  function take(view) {
    if (isPaused && views.length >= MAX_VIEWS) return; // what is looked at stays
    views.push(Object.assign(view, { cameAt: performance.now() }));
    if (views.length > MAX_VIEWS) views.shift();
    by("moment").max = views.length - 1;
    if (isPaused && shown >= 0) tellMoment();
    else show(views.length - 1);
  }

  function tellMoment() {
    const since = views.slice(shown + 1).reduce((sum, view) => sum + view.steps.length, 0);
    const ago = since + views[shown].steps.length - 1 - stepAt;
    const seconds = (views.at(-1).cameAt - views[shown].cameAt) / 1000;
    const text = ago || seconds ? `${ago} ${ago === 1 ? "step" : "steps"}, ${seconds.toFixed(1)} s ago` : "now";
    by("moment").value = shown;
    by("moment").setAttribute("aria-valuetext", text);
    by("moment-text").textContent = text;
  }

  const shownStep = () => views[shown].steps[stepAt]?.[0] ?? views[shown].step;

  /** Put a view on the screen, with one of its steps; without one the last. */
  function show(index, step = Infinity) {
    shown = Math.min(Math.max(index, 0), views.length - 1);
    if (shown < 0) return;
    stepAt = Math.min(step, views[shown].steps.length - 1);
    tellMoment();
    if (isDrawing) return; // the frame that comes shows this, too
    isDrawing = true;
    requestAnimationFrame(() => {
      isDrawing = false;
      draw(views[shown]);
    });
  }

  /** Go to the step before or after the one on the screen, in whichever view it is. */
  function move(way) {
    pause(true);
    if (views[shown]?.steps[stepAt + way]) return show(shown, stepAt + way);
    let index = shown + way;
    while (views[index]?.steps.length === 0) index += way; // the engine was idle
    if (views[index]) show(index, way > 0 ? 0 : Infinity);
  }

  function pause(paused) {
    isPaused = paused;
    by("pause").setAttribute("aria-pressed", String(paused));
    if (!paused) show(views.length - 1);
  }

  function draw(view) {
    const [step, numPrefill, numDecode, ms] = view.steps[stepAt] ?? [view.step, 0, 0, 0];
    const work = ms ? `: ${numPrefill} prompt and ${numDecode} other tokens in ${ms.toFixed(1)} ms` : "";
    const isLast = step === view.step; // pool, batch and queue are those behind the last step of the view
    const after = isLast ? "" : `After step ${view.step}, as below: `;
    by("step-column").textContent = isLast ? "This step" : `Step ${view.step}`;
    by("numbers").textContent =
      `Step ${step}${work}. ${after}${view.num_running} run, ${view.num_waiting} wait. ` +
      `${view.num_used_blocks} of ${view.num_blocks} blocks used, ${view.num_cached_blocks} free ones hold a prefix; ` +
      `a block has ${view.block_size} tokens, a cell ${view.blocks_per_cell} ${view.blocks_per_cell === 1 ? "block" : "blocks"}.`;
    drawPool(view);
    drawBatch(view);
    drawSteps();
    drawEvents();
  }

  function drawPool(view) {
    const canvas = by("pool");
    const columns = Math.max(Math.floor(canvas.clientWidth / CELL), 1);
    const rows = Math.ceil(view.cell_states.length / columns);
    if (canvas.width !== columns * CELL || canvas.height !== rows * CELL) {
      canvas.width = columns * CELL;
      canvas.height = rows * CELL;
    }
    const owners = view.cell_owners.flatMap(([owner, count]) => Array(count).fill(owner));
    cells = { states: view.cell_states, owners, columns };
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (let index = 0; index < owners.length; index++) {
      context.fillStyle = colour(STATES[view.cell_states[index]], owners[index]);
      context.fillRect((index % columns) * CELL, Math.floor(index / columns) * CELL, CELL - 1, CELL - 1);
    }
  }

  function colour(state, owner) {
    if (state === "free") return "#88888833";
    if (state === "cached") return "#7fb8c9";
    if (state === "shared") return "#b050c0";
    return `hsl(${(owner * 47) % 280} 55% 45%)`;
  }

  function drawBatch(view) {
    const rows = [
      ...view.running.map((row) => [row, row[3] < row[1] ? "prefill" : "decode"]),
      ...view.waiting.map((row) => [row, "waiting"]),
    ];
    const known = new Map([...by("batch").children].map((row) => [row.dataset.request, row]));
    const nodes = rows.map(([[number, numPrompt, numTokens, numComputed, maxTokens, numBlocks, numStep, reason], phase]) => {
      const row = known.get(String(number)) ?? newRow(number);
      row.dataset.lesson = phase;
      const state = phase === "waiting" ? `waits: ${reason ?? "not looked at yet"}` : phase;
      const sizes = [numStep, `${numComputed} of ${numTokens}`, `${numTokens} of at most ${numPrompt + maxTokens}`, numBlocks];
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

  /** Make these the children of a node; those that stay are not touched, so that they can be pressed meanwhile. */
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
      steps.unshift(...(index === shown ? views[index].steps.slice(0, stepAt + 1) : views[index].steps));
    const bars = steps.slice(-MAX_BARS);
    const canvas = by("steps");
    const context = canvas.getContext("2d");
    const longest = Math.max(...bars.map((step) => step[3]), 1);
    const width = canvas.width / MAX_BARS;
    context.clearRect(0, 0, canvas.width, canvas.height);
    bars.forEach(([, prefill, decode, ms], index) => {
      const height = (ms / longest) * (canvas.height - 14);
      const share = prefill / Math.max(prefill + decode, 1);
      context.fillStyle = "#3a78c2";
      context.fillRect(index * width, canvas.height - height, width - 1, height);
      context.fillStyle = "#c98a2b";
      context.fillRect(index * width, canvas.height - height, width - 1, height * share);
    });
    context.fillStyle = getComputedStyle(document.body).color;
    context.fillText(`${longest.toFixed(0)} ms`, 2, 10);
  }

  function drawEvents() {
    const step = shownStep();
    const recent = views[shown].events.filter((event) => event.step <= step);
    const current = new Set(recent.filter((event) => event.step === step));
    for (let index = shown - 1; index >= 0 && recent.length < MAX_EVENTS; index--) recent.unshift(...views[index].events);
    const told = recent.slice(-MAX_EVENTS).reverse();
    update(by("events"), told.map(lineOf));
    for (const event of told) lineOf(event).ariaCurrent = current.has(event) ? "step" : null;
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
  by("moment").addEventListener("input", () => (pause(true), show(Number(by("moment").value))));

  return {
    /** Begin or end to watch: nobody pays for what nobody looks at. */
    watch(on) {
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
