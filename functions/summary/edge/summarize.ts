/** Ends one session in the store, as `summarize.py` does: idempotent, in whatever order and however often it is asked. */

import type { SessionEnded } from "./ended.ts";
import { ask, type ModelSettings } from "./model.ts";
import { formatMoment, storedMoment } from "./moment.ts";
import { type Event, messagesForModel, plainSummary, SUMMARY_CHARS } from "./prompt.ts";
import type { Session, Store } from "./store.ts";

/** Written to the row; there already (repeated); or stale: the user came back, and the next end sends its own message. */
export type Outcome = "written" | "repeated" | "stale";

/** The message names a session or an epoch that the store does not have yet. */
export class UnknownSession extends Error {}

/**
 * Write the summary, end and duration of the session, if it is still as the message says.
 *
 * @throws {UnknownSession} There is nothing to summarise.
 * @throws {StoreError} The store did not answer; the message must come again.
 */
export async function summarize(ended: SessionEnded, store: Store, model: ModelSettings | null): Promise<Outcome> {
  const session = await store.session(ended.sessionId);
  if (!session || session.epoch < ended.epoch) {
    throw new UnknownSession(`no session ${ended.sessionId} at epoch ${ended.epoch}`);
  }
  if (session.epoch > ended.epoch) return "stale";
  if (session.end_time !== null) return "repeated";
  const events = await store.events(ended.sessionId);
  const summary = await summaryOf(session, events, model);
  // Clocks differ: a session does not end before its last event.
  const moments = events.map((event) => storedMoment(event.timestamp));
  const endedAt = formatMoment(moments.reduce((last, moment) => moment > last ? moment : last, ended.endedAt));
  // While we write, the user may come back, the same message may be handled a second time, or an event may arrive that
  // the summary misses. The store decides.
  if (await store.finishSession(ended.sessionId, ended.epoch, endedAt, summary)) return "written";
  const now = await store.session(ended.sessionId);
  return now && (now.epoch > ended.epoch || now.end_time === null) ? "stale" : "repeated";
}

async function summaryOf(session: Session, events: Event[], model: ModelSettings | null): Promise<string> {
  const plain = plainSummary(events, session.mode);
  if (!model || !events.some((event) => event.role === "user")) return plain;
  return folded(await ask(model, messagesForModel(events)) ?? "") || plain; // an end needs no model
}

/** In one line, split where Python would split: its white space is not JavaScript's. */
function folded(text: string): string {
  // deno-lint-ignore no-control-regex -- Python counts the separators U+001C to U+001F
  const line = text.split(/[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/)
    .filter((part) => part).join(" ");
  return Array.from(line).slice(0, SUMMARY_CHARS).join("");
}
