// OpenAI's own JavaScript client, unchanged: prints what it got as JSON, for the test to look at.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.LARES_URL, apiKey: "none", maxRetries: 0 });
const model = "smollm2-135m-instruct";
const question = { model, messages: [{ role: "user" as const, content: "What is the capital of France?" }], temperature: 0, max_tokens: 24 };

const models: string[] = [];
for await (const one of client.models.list()) models.push(one.id);

const plain = await client.chat.completions.create(question);

let streamed = "";
let finishReason: string | null = null;
for await (const chunk of await client.chat.completions.create({ ...question, stream: true })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  finishReason = chunk.choices[0]?.finish_reason ?? finishReason;
}

let refused: unknown = null;
try {
  await client.chat.completions.create({ ...question, model: "nobody" });
} catch (error) {
  if (error instanceof OpenAI.NotFoundError) refused = { status: error.status, code: error.code, message: error.message };
}

console.log(JSON.stringify({ models, plain: plain.choices[0]?.message.content, streamed, finishReason, refused }));
