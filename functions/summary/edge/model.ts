/** Any OpenAI-compatible chat completions endpoint, asked once and without streaming: nobody is watching. */

import type { Message } from "./prompt.ts";

export interface ModelSettings {
  key: string;
  baseUrl: string;
  model: string;
  maxTokens?: number;
}

/** The model did not answer, and may the next time; the message must come again. */
export class ModelError extends Error {}

/** How long a model may take: whoever sent the message waits for the answer. */
const MODEL_MS = 20_000;

/**
 * The model's answer, or null where it refuses or is too slow: it would be so the next time as well.
 *
 * @throws {ModelError} It is busy, cannot be reached, or failed.
 */
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
    if ((error as Error).name === "TimeoutError") return null;
    throw new ModelError("The model's service cannot be reached, or its answer cannot be read.");
  }
  if (status === 429) throw new ModelError("The model is busy; try again in a moment.");
  if (status >= 500) throw new ModelError(`The model's service failed (HTTP ${status}).`);
  if (status >= 300) return null;
  return textOf(answer);
}

/** The text of a chat completion: services that call themselves compatible may leave any part out. */
function textOf(answer: unknown): string {
  const choice = (answer as { choices?: { message?: { content?: unknown } }[] } | null)?.choices?.[0];
  if (!choice) throw new ModelError("The model's answer broke off.");
  return typeof choice.message?.content === "string" ? choice.message.content.toWellFormed() : "";
}
