/** Any OpenAI-compatible chat completions endpoint, asked without streaming: nobody is watching. */

import type { Message } from "./prompt.ts";
import { bodyOf, quirksOf, suspects } from "./request.ts";

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
  const signal = AbortSignal.timeout(MODEL_MS);
  let status = 0;
  let answer = "";
  try {
    const known = quirksOf(settings);
    const tried = new Set(known);
    while (true) {
      const body = bodyOf(settings, messages, tried);
      const response = await fetch(`${settings.baseUrl.replace(/\/+$/, "")}/chat/completions`, {
        method: "POST",
        headers: { authorization: `Bearer ${settings.key}`, "content-type": "application/json" },
        body: JSON.stringify(body),
        signal,
      });
      status = response.status;
      answer = await response.text();
      const quirk = suspects(status, answer, body).find((each) => !tried.has(each));
      if (!quirk) break;
      tried.add(quirk); // and asked again: at most once for each
    }
    if (status < 300) tried.forEach((quirk) => known.add(quirk));
  } catch (error) {
    const late = (error as Error).name === "TimeoutError";
    return nothing(late ? "timeout" : "the service cannot be reached, or its answer cannot be read");
  }
  if (status >= 300) return nothing(`HTTP ${status}`);
  return textOf(answer);
}

/** The text of a chat completion. Services that call themselves compatible may leave out any part, or stream it. */
function textOf(answer: string): string | null {
  const events = answer.trimStart().startsWith("{") ? [answer] : answer.split(/\r\n|\r|\n/).flatMap(dataOf);
  const choices = events.flatMap((event) => choiceOf(event) ?? []);
  if (!choices.length) return nothing("the answer broke off, or cannot be read");
  return withoutThoughts(choices.map((choice) => wordsIn(choice.message?.content ?? choice.delta?.content)).join(""))
    .toWellFormed();
}

interface Choice {
  message?: { content?: unknown };
  delta?: { content?: unknown };
}

function dataOf(line: string): string[] {
  return line.startsWith("data:") ? [line.slice(5)] : [];
}

function choiceOf(event: string): Choice | null {
  try {
    return (JSON.parse(event) as { choices?: Choice[] } | null)?.choices?.[0] ?? null;
  } catch {
    return null; // [DONE], or nonsense between good events
  }
}

/** What stands where a text should: a text, a part, or a list of parts, of which thoughts are none. */
function wordsIn(content: unknown): string {
  if (typeof content === "string") return content;
  if (Array.isArray(content)) return content.map(wordsIn).join("");
  const part = content as { type?: string; text?: unknown } | null;
  return part && !/think|reason/.test(part.type ?? "") ? wordsIn(part.text ?? "") : "";
}

/** The answer without what some models think before it, between tags. */
function withoutThoughts(text: string): string {
  const opening = /^\s*<(think|thinking|thought|reasoning)>/i.exec(text);
  if (!opening) return text;
  const closing = `</${opening[1].toLowerCase()}>`;
  const at = text.toLowerCase().indexOf(closing, opening[0].length);
  return at < 0 ? "" : withoutThoughts(text.slice(at + closing.length).trimStart());
}

function nothing(cause: string): null {
  console.warn(JSON.stringify({ level: "warning", event: "plain summary", cause }));
  return null;
}
