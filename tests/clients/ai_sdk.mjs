// Vercel's AI SDK against a server: `node ai_sdk.mjs URL`, in a folder with its packages (docs/clients.md). Throws if an
// answer is not what it should be, else prints what came.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const caravan = createOpenAICompatible({
  name: "caravan",
  baseURL: `${process.argv[2]}/v1`,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const common = { model: caravan("smollm2"), temperature: 0, maxRetries: 0 };
const question = "What is the capital of France?";

const whole = await generateText({ ...common, maxOutputTokens: 40, prompt: question });
assert.equal(whole.finishReason, "stop");
assert(whole.usage.outputTokens > 0);

const streamed = streamText({ ...common, maxOutputTokens: 40, prompt: question });
let joined = "";
for await (const piece of streamed.textStream) joined += piece;
assert.equal(joined, whole.text);
assert.deepEqual((await streamed.usage).outputTokens, whole.usage.outputTokens);

const City = z.object({
  name: z.enum(["Paris", "Rome"]),
  stars: z.number().int().min(1).max(5),
  marks: z.record(z.string(), z.enum(["good", "bad"])).optional(),
});
const about = { ...common, schema: City, maxOutputTokens: 120, prompt: "Tell me about a city." };
const { object } = await generateObject(about);
City.parse(object);
const growing = streamObject(about);
let numPartials = 0;
for await (const _ of growing.partialObjectStream) numPartials++;
assert(numPartials > 0);
assert.deepEqual(await growing.object, object);

const getWeather = tool({
  description: "Get the weather in a city.",
  inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
  execute: async ({ city }) => ({ city, celsius: 21 }),
});
const { steps } = await generateText({
  ...common,
  maxOutputTokens: 60,
  tools: { getWeather },
  toolChoice: "required",
  prompt: "What is the weather in Rome?",
  stopWhen: stepCountIs(2),
});
assert.equal(steps.length, 2); // the second request has the first one's call and its result
for (const step of steps) assert(step.toolResults.every((result) => result.output.celsius === 21));

const replayed = await generateText({
  ...common,
  maxOutputTokens: 20,
  messages: [
    { role: "user", content: "Hi" },
    { role: "assistant", content: [{ type: "reasoning", text: "I greet." }, { type: "text", text: "Hello!" }] },
    { role: "user", content: question },
  ],
});
assert(replayed.text.length > 0);
console.log(JSON.stringify({ text: whole.text, object, calls: steps.map((step) => step.toolCalls.length) }));
