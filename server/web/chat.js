// Chat: a conversation stored in the browser, streamed answers, and the probabilities of their tokens.
import { complaint, events, headers, trouble } from "./frame.js";
import { markdown } from "./markdown.js";

const by = (id) => document.getElementById(id);

/** Return the stored conversation, empty if there is none. */
function stored() {
  try {
    return JSON.parse(localStorage.getItem("messages")) ?? [];
  } catch {
    return [];
  }
}

/** Store a conversation, without its tokens if it is too large for the browser's storage. */
function store(messages) {
  for (const kept of [messages, messages.map(({ role, content, facts }) => ({ role, content, facts }))]) {
    try {
      localStorage.setItem("messages", JSON.stringify(kept));
      return;
    } catch {
      // Try the smaller version.
    }
  }
}

const probability = ({ token, logprob }) => ({ token, logprob });

/** Return the line below an answer; `first` is the time of its first text, 0 if it has none. */
function facts(numTokens, began, first) {
  const tokens = numTokens === 1 ? "1 token" : `${numTokens} tokens`;
  if (!first) return `${tokens}, no text`;
  const seconds = (performance.now() - first) / 1000;
  const rate = numTokens > 1 && seconds > 0 ? `, ${((numTokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  return `${tokens}${rate}; first token after ${Math.round(first - began)} ms`;
}

export function startChat() {
  let model = "";
  let running = null; // AbortController of the current answer
  let isDrawing = false; // a frame is requested
  const messages = stored(); // {role, content, tokens?, facts?}
  by("system").value = localStorage.getItem("system") ?? "";
  by("system").addEventListener("change", () => localStorage.setItem("system", by("system").value));

  function keep() {
    store(messages);
    by("messages").setAttribute("aria-busy", String(running !== null)); // screen readers read the complete answer
    by("again").disabled = running !== null || messages.length === 0;
    by("send").disabled = running !== null;
    by("stop").disabled = running === null;
  }

  function draw() {
    by("messages").replaceChildren(...messages.map(drawn));
    keep();
  }

  function drawn(message) {
    const box = document.createElement("div");
    box.className = `message ${message.role}`;
    const who = document.createElement("p");
    who.className = "who";
    who.textContent = message.role === "user" ? "You" : "Model";
    box.append(who);
    if (by("token-view").checked && message.tokens?.length) box.append(...message.tokens.map(tokenNode));
    else box.append(...markdown(message.content));
    if (message.facts) {
      const facts = document.createElement("p");
      facts.className = "facts";
      facts.textContent = message.facts;
      box.append(facts);
    }
    return box;
  }

  function tokenNode(token) {
    const node = document.createElement("span");
    node.className = "token";
    node.tabIndex = 0;
    node.textContent = token.token;
    const probability = Math.exp(token.logprob);
    node.style.borderBottomColor = `hsl(${Math.round(120 * probability)} 70% 45%)`;
    const others = token.top.map((one) => `${JSON.stringify(one.token)} ${percent(one.logprob)}`).join(", ");
    const text = `${JSON.stringify(token.token)}: probability ${percent(token.logprob)}. Alternatives: ${others}.`;
    node.title = text;
    return node;
  }

  const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

  async function modelName() {
    if (!model) {
      const response = await fetch("/v1/models", { headers: headers() });
      if (!response.ok) throw new Error(await complaint(response));
      model = (await response.json()).data[0].id;
    }
    return model;
  }

  /** Draw the current answer in the next frame, at most once per frame. */
  function drawSoon(message) {
    if (isDrawing) return;
    isDrawing = true;
    requestAnimationFrame(() => {
      isDrawing = false;
      if (message === messages.at(-1)) by("messages").lastChild.replaceWith(drawn(message));
    });
  }

  /** Request an answer to the last message; an existing one is replaced with the first text of the new one. */
  async function answer() {
    running = new AbortController();
    const message = { role: "assistant", content: "", tokens: [] };
    const old = messages.at(-1).role === "assistant" ? messages.at(-1) : null;
    const asked = (old ? messages.slice(0, -1) : messages).map(({ role, content }) => ({ role, content }));
    const system = by("system").value.trim();
    if (system) asked.unshift({ role: "system", content: system });
    const replaceOld = () => old && messages.at(-1) === old && messages.splice(-1, 1, message);
    if (!old) messages.push(message);
    draw();
    let began = 0;
    let first = 0;
    let usage = null;
    try {
      const body = {
        model: await modelName(),
        messages: asked,
        stream: true,
        stream_options: { include_usage: true },
        temperature: Number(by("temperature").value),
        top_p: Number(by("top-p").value),
        max_completion_tokens: Number(by("max-tokens").value),
        logprobs: true,
        top_logprobs: 4,
      };
      began = performance.now();
      const response = await fetch("/v1/chat/completions", {
        method: "POST",
        headers: { "content-type": "application/json", ...headers() },
        body: JSON.stringify(body),
        signal: running.signal,
      });
      if (!response.ok) throw new Error(await complaint(response));
      trouble("");
      for await (const payload of events(response)) {
        if (payload === "[DONE]") break;
        const chunk = JSON.parse(payload);
        if (chunk.error) throw new Error(chunk.error.message);
        usage = chunk.usage ?? usage;
        const choice = chunk.choices[0];
        if (!choice) continue;
        if (!first && choice.delta.content) {
          first = performance.now();
          replaceOld();
        }
        message.content += choice.delta.content ?? "";
        for (const token of choice.logprobs?.content ?? [])
          message.tokens.push({ ...probability(token), top: token.top_logprobs.map(probability) });
        drawSoon(message);
      }
    } catch (error) {
      if (error.name !== "AbortError") trouble(error.message);
    }
    if (first || usage) {
      message.facts = facts(usage?.completion_tokens ?? message.tokens.length, began, first);
      replaceOld();
    } else if (messages.at(-1) === message) messages.pop();
    running = null;
    draw();
  }

  by("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const content = by("question").value.trim();
    if (!content || running) return;
    by("question").value = "";
    messages.push({ role: "user", content });
    answer();
  });
  by("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      by("ask").requestSubmit();
    }
  });
  by("stop").addEventListener("click", () => running?.abort());
  by("again").addEventListener("click", () => answer());
  by("clear").addEventListener("click", () => {
    running?.abort();
    messages.length = 0;
    draw();
  });
  by("token-view").addEventListener("change", draw);
  for (const event of ["mouseover", "focusin"])
    by("messages").addEventListener(event, ({ target }) => {
      if (target.className === "token") by("token-details").textContent = target.title;
    });
  draw();
}
