// What an empty conversation shows: the model, three questions to press, and where the words go.
import { button, counted, element } from "../nodes.js";

const QUESTIONS = [
  "What is the capital of France?",
  "Write a short poem about the sea at night.",
  "Explain in three points how to make tea.",
];

/** Return the node. `model` is null until it is known; `ask` gets a question. */
export function welcome(model, ask) {
  const facts = model ? [model.size, model.quantization, `${counted(model.maxModelLen)} tokens of context`] : [];
  const link = element("a", { href: "#engine" }, "See how the engine works on it");
  return element(
    "section",
    { class: "welcome", "aria-label": "Start" },
    element("h2", {}, model ? `Chat with ${model.name}` : "Chat"),
    model ? element("p", { class: "meta" }, facts.filter(Boolean).join(", ")) : null,
    element("ul", { class: "questions" }, ...QUESTIONS.map((text) => element("li", {}, button(text, () => ask(text))))),
    element("p", { class: "meta" }, "Conversations stay in this browser. What you send goes to this server only."),
    element("p", { class: "meta" }, link, " in the Engine view."),
  );
}
