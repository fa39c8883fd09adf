/** What a model is asked, in the way its service takes: learned from its refusal, once for a model, as in `quirks.py`. */

import type { ModelSettings } from "./model.ts";
import type { Message } from "./prompt.ts";

/** `max_tokens` stands for `max_completion_tokens`, or the system prompt is the beginning of the first message. */
export type Quirk = "max_tokens" | "no_system";

const QUIRKS: Quirk[] = ["max_tokens", "no_system"];
const REFUSALS = new Set([400, 404, 405, 415, 422, 501]);
const CANNOT = /support|enable|available|allow|permit|implement|unknown|unexpected|unrecogni|extra|require/;
const learned = new Map<string, Set<Quirk>>();

/** What is known of this model: what LLM_QUIRKS says, and what its refusals have taught since this process began. */
export function quirksOf(settings: ModelSettings): Set<Quirk> {
  const model = `${settings.baseUrl} ${settings.model}`;
  let known = learned.get(model);
  if (!known) {
    const said = (Deno.env.get("LLM_QUIRKS") ?? "").toLowerCase().split(",").map((name) => name.trim());
    known = new Set(QUIRKS.filter((quirk) => said.includes(quirk)));
    learned.set(model, known);
  }
  return known;
}

export interface Body {
  model: string;
  messages: Message[];
  max_tokens?: number;
  max_completion_tokens?: number;
}

/** The request's body. */
export function bodyOf(settings: ModelSettings, messages: Message[], quirks: Set<Quirk>): Body {
  const limit = quirks.has("max_tokens") ? "max_tokens" : "max_completion_tokens";
  const told = quirks.has("no_system")
    ? [{ role: "user" as const, content: messages.map((message) => message.content).join("\n\n") }]
    : messages;
  return { model: settings.model, messages: told, [limit]: settings.maxTokens };
}

/** What the refusal of this request may mean, the likeliest first. */
export function suspects(status: number, answer: string, body: Body): Quirk[] {
  const text = answer.slice(0, 4000).toLowerCase();
  if (!REFUSALS.has(status) || text.includes("context") || text.includes("too long")) return [];
  const found: Quirk[] = [];
  if (text.includes("system") && body.messages[0].role === "system" && (text.includes("role") || CANNOT.test(text))) {
    found.push("no_system");
  }
  if (body.max_completion_tokens && (/max_(completion_)?tokens/.test(text) || status === 422)) found.push("max_tokens");
  return found;
}
