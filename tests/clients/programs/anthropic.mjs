// The @anthropic-ai/sdk library of npm: node anthropic.mjs messages|models. Prints what it got as one line of JSON.
import Anthropic, { NotFoundError } from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { z } from "zod";

const model = process.env.PLEXUS_MODEL;
const client = new Anthropic({ baseURL: process.env.PLEXUS_API.replace("/v1", ""), apiKey: "any", maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const max_tokens = 200;
const CAPITAL = user("What is the capital of France?");

async function messages() {
  const pieces = [];
  const stream = client.messages.stream({ model, max_tokens, messages: CAPITAL });
  stream.on("text", (piece) => pieces.push(piece));
  const final = await stream.finalMessage();

  const calls = [];
  const weather = betaZodTool({
    name: "get_weather",
    description: "Get the current weather for a city.",
    inputSchema: z.object({ city: z.string() }),
    run: (args) => (calls.push(["get_weather", args]), "12 degrees and rain"),
  });
  const runner = client.beta.messages.toolRunner({
    model, max_tokens, messages: user("What is the weather in Paris?"), tools: [weather], stream: true,
  });
  let last;
  for await (const turn of runner) last = await turn.finalMessage();

  const City = z.object({ city: z.enum(["Paris", "Rome"]), sunny: z.boolean() });
  const parsed = await client.messages.parse({
    model, max_tokens, messages: CAPITAL, output_config: { format: zodOutputFormat(City) },
  });
  return {
    streamed: final.content[0].text, pieces, finish: final.stop_reason,
    usage: [final.usage.input_tokens + final.usage.cache_read_input_tokens, final.usage.output_tokens],
    calls, answer: last.content[0].text, object: parsed.parsed_output,
  };
}

async function models() {
  const models = [];
  for await (const one of client.models.list({ limit: 1 })) models.push(one.id);
  const counted = await client.messages.countTokens({ model, messages: CAPITAL });
  const refused = await client.messages.create({ model: "none", max_tokens, messages: CAPITAL }).catch((error) => error);
  return { models, counted: counted.input_tokens, id: counted._request_id, refused: refused instanceof NotFoundError && refused.type };
}

console.log(JSON.stringify(await { messages, models }[process.argv[2]]()));
