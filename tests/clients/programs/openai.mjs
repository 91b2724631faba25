// The openai library of npm: node openai.mjs <surface>. Prints what it got as one line of JSON.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = process.env.PLEXUS_MODEL;
const client = new OpenAI({ baseURL: process.env.PLEXUS_API, apiKey: "any", maxRetries: 0 });
const City = z.object({ city: z.enum(["Paris", "Rome"]), sunny: z.boolean() });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const description = "Get the current weather for a city.";
const CAPITAL = "What is the capital of France?";
const WEATHER = "What is the weather in Paris?";
const FORECAST = "12 degrees and rain";

async function chat() {
  const user = (content) => [{ role: "user", content }];
  const pieces = [];
  const stream = client.chat.completions.stream({ model, messages: user(CAPITAL), stream_options: { include_usage: true } });
  stream.on("content", (piece) => pieces.push(piece));
  const final = await stream.finalChatCompletion();

  const calls = [];
  const look = (args) => (calls.push(["get_weather", args]), FORECAST);
  const runner = client.chat.completions.runTools({
    model,
    messages: user(WEATHER),
    stream: true,
    tools: [{ type: "function", function: { name: "get_weather", description, parameters, parse: JSON.parse, function: look } }],
  });
  const answer = await runner.finalContent();

  const parsed = await client.chat.completions.parse({ model, messages: user(CAPITAL), response_format: zodResponseFormat(City, "city") });
  return {
    streamed: final.choices[0].message.content, pieces, finish: final.choices[0].finish_reason,
    usage: [final.usage.prompt_tokens, final.usage.completion_tokens],
    calls, answer, object: parsed.choices[0].message.parsed, id: parsed._request_id,
  };
}

async function responses() {
  const pieces = [];
  const stream = client.responses.stream({ model, input: CAPITAL });
  stream.on("response.output_text.delta", (event) => pieces.push(event.delta));
  const final = await stream.finalResponse();

  const tools = [{ type: "function", name: "get_weather", description, parameters, strict: false }];
  const first = await client.responses.stream({ model, input: WEATHER, tools }).finalResponse();
  const wanted = first.output.filter((item) => item.type === "function_call");
  const outputs = wanted.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: FORECAST }));
  const second = await client.responses.create({ model, tools, previous_response_id: first.id, input: outputs });

  const parsed = await client.responses.parse({ model, input: CAPITAL, text: { format: zodTextFormat(City, "city") } });
  return {
    streamed: final.output_text, pieces, finish: final.status,
    usage: [final.usage.input_tokens, final.usage.output_tokens],
    calls: wanted.map((call) => [call.name, JSON.parse(call.arguments)]), answer: second.output_text,
    object: parsed.output_parsed, id: parsed._request_id,
  };
}

async function background() {
  const seen = [];
  let id;
  for await (const event of await client.responses.create({ model, input: CAPITAL, background: true, stream: true })) {
    id ??= event.response?.id;
    seen.push(event);
    if (seen.length === 3) break; // the client leaves, and the response goes on
  }
  const last = seen.at(-1).sequence_number;
  for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) seen.push(event);
  const fetched = await client.responses.retrieve(id);
  const image_url = "data:image/png;base64,iVBORw0KGgo=";
  const input = [{ role: "user", content: [{ type: "input_image", image_url, detail: "auto" }] }];
  const refused = await client.responses.create({ model, input }).catch((error) => [error.constructor.name, error.param]);
  return {
    numbers: seen.map((event) => event.sequence_number), first: seen[0].type, last: seen.at(-1).type,
    text: seen.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join(""),
    fetched: fetched.output_text, refused,
  };
}

async function rest() {
  const completion = await client.completions.create({ model, prompt: "One two", max_tokens: 4, stream: true });
  const pieces = [];
  for await (const chunk of completion) pieces.push(chunk.choices[0]?.text ?? "");
  const input = ["One two", "The river"];
  const embedder = process.env.PLEXUS_EMBEDDER;
  const packed = await client.embeddings.create({ model: embedder, input }); // base64 unless asked otherwise
  const plain = await client.embeddings.create({ model: embedder, input, encoding_format: "float" });
  const models = [];
  for await (const one of client.models.list()) models.push(one.id);
  const wrong = { model: "none", messages: [{ role: "user", content: "hi" }] };
  const refused = await client.chat.completions.create(wrong).catch((error) => error.constructor.name);
  return {
    pieces, models, refused,
    packed: packed.data.map((one) => Array.from(one.embedding)), plain: plain.data.map((one) => one.embedding),
  };
}

console.log(JSON.stringify(await { chat, responses, background, rest }[process.argv[2]]()));
