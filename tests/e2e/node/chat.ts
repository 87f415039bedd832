import { credentials } from "@grpc/grpc-js";
import { GenerateRequest, InferenceServiceClient, Role } from "./generated/lares/inference/v1/inference.js";

const inference = new InferenceServiceClient(process.env.LARES_GRPC ?? "127.0.0.1:7211", credentials.createInsecure());
const request = GenerateRequest.fromPartial({
  model: "smollm2-135m-instruct",
  chat: { messages: [{ role: Role.ROLE_USER, content: [{ text: "What is the capital of France?" }] }] },
  sampling: { temperature: 0 },
  stop: { maxTokens: 24 },
});
for await (const response of inference.generate(request)) {
  if (response.delta) process.stdout.write(response.delta.text);
}
inference.close();
