/** Any OpenAI-compatible chat completions endpoint, asked once and without streaming: nobody is watching. */

import type { Message } from "./prompt.ts";

export interface ModelSettings {
  key: string;
  baseUrl: string;
  model: string;
  maxTokens?: number;
}

/** How long a model may take, in milliseconds: the sender of the message is waiting. */
const MODEL_MS = 20_000;

/** The model's answer, or null if it gives none. The log says why, in our own words. */
export async function ask(settings: ModelSettings, messages: Message[]): Promise<string | null> {
  const request = { model: settings.model, messages, max_completion_tokens: settings.maxTokens };
  let status = 0;
  let answer: unknown;
  try {
    const response = await fetch(`${settings.baseUrl.replace(/\/+$/, "")}/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${settings.key}`, "content-type": "application/json" },
      body: JSON.stringify(request),
      signal: AbortSignal.timeout(MODEL_MS),
    });
    status = response.status;
    answer = response.ok ? await response.json() : await response.body?.cancel();
  } catch (error) {
    const late = (error as Error).name === "TimeoutError";
    return nothing(late ? "timeout" : "the service cannot be reached, or its answer cannot be read");
  }
  if (status >= 300) return nothing(`HTTP ${status}`);
  return textOf(answer);
}

/** The text of a chat completion. Services that call themselves compatible may leave out any part. */
function textOf(answer: unknown): string | null {
  const choice = (answer as { choices?: { message?: { content?: unknown } }[] } | null)?.choices?.[0];
  if (!choice) return nothing("the answer broke off");
  return typeof choice.message?.content === "string" ? choice.message.content.toWellFormed() : null;
}

function nothing(cause: string): null {
  console.warn(JSON.stringify({ level: "warning", event: "plain summary", cause }));
  return null;
}
