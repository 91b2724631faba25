// The AI SDK: node ai_sdk.mjs <provider>. Prints what it got as one line of JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const where = { baseURL: process.env.PLEXUS_API, apiKey: "any" };
const named = process.env.PLEXUS_MODEL;
const model = {
  "openai-compatible": () =>
    createOpenAICompatible({ name: "plexus", ...where, includeUsage: true, supportsStructuredOutputs: true })(named),
  anthropic: () => createAnthropic(where)(named),
  "openai responses": () => createOpenAI(where)(named),
  "openai chat": () => createOpenAI(where).chat(named),
}[process.argv[2]]();

const fail = ({ error }) => { throw error; };
const common = { model, maxRetries: 0, maxOutputTokens: 200 };
const CAPITAL = "What is the capital of France?";

const told = streamText({ ...common, prompt: CAPITAL, onError: fail });
const pieces = [];
for await (const piece of told.textStream) pieces.push(piece);
const usage = await told.usage;

const calls = [];
const weather = tool({
  description: "Get the current weather for a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async (args) => (calls.push(["get_weather", args]), "12 degrees and rain"),
});
const worked = streamText({
  ...common, prompt: "What is the weather in Paris?", tools: { get_weather: weather }, stopWhen: stepCountIs(3), onError: fail,
});
await worked.consumeStream();

const schema = z.object({ city: z.enum(["Paris", "Rome"]), sunny: z.boolean() });
const made = await generateObject({ ...common, schema, prompt: CAPITAL });
console.log(JSON.stringify({
  streamed: pieces.join(""), pieces, finish: await told.finishReason, usage: [usage.inputTokens, usage.outputTokens],
  calls, answer: await worked.text, object: made.object,
}));
