/**
 * The summary function as a Supabase Edge Function: the Lambda's twin, woken by HTTP instead of a queue.
 *
 * `POST` one `SessionEnded`, bare or as a database webhook's `record`, with `Authorization: Bearer <HANDOFF_SECRET>`.
 * 200 tells the outcome. After any other answer the message has not been dealt with, and should be sent again.
 *
 *   200 {"outcome": "written" | "repeated" | "stale"}
 *   400 the message is malformed; the error names the field        405 not a POST
 *   401 the secret is wrong, or none is set here                     409 no such session, or epoch, yet
 *   503 the store failed, or a setting is missing
 *
 * Whatever the model does, the session is ended: if it gives no summary, the plain one is written, and stays.
 */

import { Malformed, readEnded } from "./ended.ts";
import type { ModelSettings } from "./model.ts";
import { Store, StoreError } from "./store.ts";
import { summarize, UnknownSession } from "./summarize.ts";

class SettingMissing extends Error {}

const STATUS = new Map<unknown, number>([
  [Malformed, 400],
  [UnknownSession, 409],
  [StoreError, 503],
  [SettingMissing, 503],
]);

async function handle(request: Request): Promise<Response> {
  if (request.method !== "POST") return answer(405, { error: "POST a SessionEnded" }, { allow: "POST" });
  if (!await mayCall(request)) return answer(401, { error: "HANDOFF_SECRET is not set, or not what was sent" });
  try {
    const ended = readEnded(new Uint8Array(await request.arrayBuffer()));
    const outcome = await summarize(ended, store(), model());
    const traceId = ended.traceparent?.split("-")[1];
    log("info", outcome, { session_id: ended.sessionId, epoch: ended.epoch, reason: ended.reason, trace_id: traceId });
    return answer(200, { outcome });
  } catch (error) {
    const { constructor, message, stack = "" } = error as Error;
    const status = STATUS.get(constructor);
    // An unforeseen error may quote the conversation, so only its location is logged, and nothing of it is answered.
    const where = status ? undefined : stack.split("\n").filter((line) => line.startsWith("    at ")).join("\n");
    log("error", "message failed", { cause: status ? message : constructor.name, where });
    return answer(status ?? 500, { error: status ? message : "unexpected" });
  }
}

/** Whether the caller knows the secret, or the one before it while that is being changed; in constant time. */
async function mayCall(request: Request): Promise<boolean> {
  const given = /^Bearer (.+)$/i.exec(request.headers.get("authorization") ?? "")?.[1];
  const secrets = ["HANDOFF_SECRET", "HANDOFF_SECRET_OLD"].map((name) => Deno.env.get(name)).filter((it) => !!it);
  if (!given) return false;
  const [theirs, ...ours] = await Promise.all([given, ...secrets as string[]].map(digest));
  const differences = ours.map((our) => our.reduce((sum, byte, index) => sum | (byte ^ theirs[index]), 0));
  return differences.includes(0);
}

async function digest(text: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
}

/** The project's own store. Supabase sets both variables; `SUPABASE_KEY` is for running elsewhere. */
function store(): Store {
  const keys = JSON.parse(Deno.env.get("SUPABASE_SECRET_KEYS") || "{}");
  const key = Deno.env.get("SUPABASE_KEY") || keys.default || Deno.env.get("SUPABASE_SERVICE_ROLE_KEY");
  if (!key) throw new SettingMissing("SUPABASE_SERVICE_ROLE_KEY: not set");
  return new Store(needed("SUPABASE_URL"), key);
}

/** The model to ask, or null without a key: then the summary is the plain one. */
function model(): ModelSettings | null {
  const key = Deno.env.get("OPENAI_API_KEY");
  if (!key) return null;
  const baseUrl = Deno.env.get("OPENAI_BASE_URL") || "https://api.openai.com/v1";
  return { key, baseUrl, model: needed("LLM_MODEL"), maxTokens: Number(Deno.env.get("LLM_MAX_TOKENS")) || undefined };
}

function needed(name: string): string {
  const value = Deno.env.get(name);
  if (!value) throw new SettingMissing(`${name}: not set`);
  return value;
}

function answer(status: number, body: Record<string, string>, headers: Record<string, string> = {}): Response {
  return Response.json(body, { status, headers });
}

function log(level: "info" | "error", event: string, fields: Record<string, unknown>): void {
  console[level](JSON.stringify({ level, event, ...fields }));
}

Deno.serve(handle);
