/** The rows, through PostgREST: plain `fetch`, so that a cold start has nothing to load. */

import type { Event } from "./prompt.ts";

export interface Session {
  epoch: number;
  mode: string | null;
  end_time: string | null;
}

/** The store did not do what was asked; the message must come again. */
export class StoreError extends Error {}

const PAGE = 1000;
/** A page shorter than this is the last: no server is set to send fewer rows at once. Supabase's own cap is 1000. */
const LEAST_ROW_CAP = 100;
const TIMEOUT_MS = 10_000;
/** What `fetch` calls it, and what it means. */
const WHY = new Map([["TypeError", "cannot be reached"], ["TimeoutError", "no answer in time"]]);

export class Store {
  readonly #rest: string;
  readonly #headers: Record<string, string>;

  constructor(url: string, key: string) {
    this.#rest = `${url.replace(/\/+$/, "")}/rest/v1`;
    this.#headers = { apikey: key, "content-type": "application/json" };
    // A key `sb_secret_…` is no token: the gateway puts one in its place. The legacy key is, and goes where tokens go.
    if (!key.startsWith("sb_")) this.#headers.authorization = `Bearer ${key}`;
  }

  /** The session's row, or null if there is none. */
  async session(sessionId: string): Promise<Session | null> {
    const rows = await this.#rows<Session>(`sessions?select=epoch,mode,end_time&session_id=eq.${sessionId}`);
    return rows[0] ?? null;
  }

  /**
   * All events of the session, oldest first.
   *
   * A server caps a page without saying so. A page is the last one if it is shorter than the longest one seen.
   */
  async events(sessionId: string): Promise<Event[]> {
    const query = `events?select=id,role,content,timestamp,metadata&session_id=eq.${sessionId}&order=id&limit=${PAGE}`;
    const events: Event[] = [];
    let longest = LEAST_ROW_CAP;
    while (true) {
      const page = await this.#rows<Event>(`${query}&id=gt.${events.at(-1)?.id ?? 0}`);
      for (const event of page) events.push(event);
      if (page.length < longest) return events;
      longest = page.length;
    }
  }

  /** Write end, duration and summary, if the session is open and still at this epoch; whether this call did. */
  async finishSession(sessionId: string, epoch: number, endedAt: string, summary: string): Promise<boolean> {
    const parameters = { p_session_id: sessionId, p_epoch: epoch, p_ended_at: endedAt, p_summary: storable(summary) };
    const done = await this.#request("rpc/finish_session", { method: "POST", body: JSON.stringify(parameters) });
    if (typeof done !== "boolean") throw new StoreError("Supabase: finish_session did not answer with a boolean");
    return done;
  }

  async #rows<Row>(query: string): Promise<Row[]> {
    const rows = await this.#request(query, {});
    if (!Array.isArray(rows)) throw new StoreError("Supabase: the answer is not what PostgREST sends");
    return rows;
  }

  /** The answer's JSON. Of a refusal only status and code are told: its texts can quote rows. */
  async #request(path: string, init: RequestInit): Promise<unknown> {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    let response: Response;
    let answer: unknown;
    try {
      response = await fetch(`${this.#rest}/${path}`, { ...init, headers: this.#headers, signal });
      answer = await response.json();
    } catch (error) {
      throw new StoreError(`Supabase: ${WHY.get((error as Error).name) ?? "the answer is not what PostgREST sends"}`);
    }
    if (response.ok) return answer;
    const code = (answer as { code?: unknown } | null)?.code;
    throw new StoreError(`Supabase: HTTP ${response.status}${/^\w+$/.test(String(code ?? "")) ? ` ${code}` : ""}`);
  }
}

/** The text with U+FFFD in place of U+0000, which PostgreSQL cannot store, and of half surrogate pairs. */
function storable(text: string): string {
  return text.replaceAll("\0", "\ufffd").toWellFormed();
}
