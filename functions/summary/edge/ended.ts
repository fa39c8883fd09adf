/** The message that wakes the function, held to the same rules as `SessionEnded.from_json` of `infra/records.py`. */

import { type Moment, parseMoment } from "./moment.ts";

export interface SessionEnded {
  sessionId: string;
  epoch: number;
  endedAt: Moment;
  reason: string;
  traceparent: string | null;
}

/** The body is not such a message. The text names the part that is wrong, and quotes nothing. */
export class Malformed extends Error {}

type Fields = Record<string, unknown>;

const SESSION_ID = /^[A-Za-z0-9_-]{1,128}$/;
const REASONS = ["closed", "dropped", "shutdown", "crashed"];

/**
 * Read the message: bare, as the container sends it, or as the `record` of a Supabase database webhook.
 *
 * @throws {Malformed} It is not JSON, its version is unknown, or a field is missing or wrong.
 */
export function readEnded(body: Uint8Array): SessionEnded {
  const fields = unwrapped(parse(body));
  const { session_id, epoch, ended_at, reason, version = 1, traceparent = null } = fields;
  if (typeof session_id !== "string" || !SESSION_ID.test(session_id)) {
    throw new Malformed(`session_id must match ${SESSION_ID.source.slice(1, -1)}`);
  }
  if (!Number.isInteger(epoch)) throw new Malformed("epoch must be an integer");
  const endedAt = typeof ended_at === "string" ? parseMoment(ended_at) : null;
  if (endedAt === null) throw new Malformed("ended_at must be an RFC 3339 time with its UTC offset");
  if (typeof reason !== "string" || !REASONS.includes(reason)) {
    throw new Malformed(`reason must be one of ${REASONS.join(", ")}`);
  }
  if (version !== 1) throw new Malformed("version must be 1");
  if (traceparent !== null && typeof traceparent !== "string") throw new Malformed("traceparent must be a string");
  return { sessionId: session_id, epoch: epoch as number, endedAt, reason, traceparent };
}

function parse(body: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body), strictly);
  } catch {
    throw new Malformed("the body must be JSON in UTF-8");
  }
}

/** To JavaScript, 1.0 is the integer 1 and half a surrogate pair is text. The Lambda refuses both, and so does this. */
function strictly(_: string, value: unknown, context?: { source?: string }): unknown {
  if (typeof value === "number") return /[.eE]/.test(context?.source ?? "") ? NaN : value;
  if (typeof value === "string" && !value.isWellFormed()) throw new SyntaxError();
  return value;
}

function unwrapped(body: unknown): Fields {
  if (!isObject(body)) throw new Malformed("the body must be a JSON object");
  if ("session_id" in body || !("record" in body)) return body;
  if (body.type !== "INSERT" && body.type !== "UPDATE") throw new Malformed("type must be INSERT or UPDATE");
  if (!isObject(body.record)) throw new Malformed("record must be a JSON object");
  return body.record;
}

function isObject(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
