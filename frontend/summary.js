"use strict";
/* The session's summary: written by another process after the session ended, so the page asks until it is there. */

const Summary = (() => {
  const FIRST_DELAY_MS = 300;
  const MOST_DELAY_MS = 3_000;
  const GIVE_UP_MS = 30_000;
  const ANSWER_WITHIN_MS = 5_000;
  const SURE_AFTER = 2; // the session we have just left may be live for a moment, and a server be down for one

  const $ = (id) => document.getElementById(id);
  let current = null; // what is being asked for; a newer question makes the older one's answers void

  /** Ask for the summary of this session's given epoch, and show it. */
  async function watch(server, sessionId, epoch) {
    const mine = (current = { server, sessionId, epoch });
    show({ status: "Writing the summary of this session…", waiting: true });
    const deadline = performance.now() + GIVE_UP_MS;
    let outcome = null;
    let same = 0; // how often in a row the answer was that it will not come
    for (let delay = FIRST_DELAY_MS; performance.now() < deadline; delay = Math.min(MOST_DELAY_MS, delay * 1.3)) {
      await new Promise((resolve) => setTimeout(resolve, delay));
      if (mine !== current) return;
      const before = outcome;
      outcome = await ask(mine);
      if (mine !== current) return;
      if (outcome.final) {
        show(outcome);
        return;
      }
      same = outcome.hopeless && outcome.status === before?.status ? same + 1 : 0;
      if (same === SURE_AFTER) break;
    }
    show({ status: outcome.status, again: true });
  }

  /** Take the panel away, and stop asking. */
  function hide() {
    current = null;
    $("summary").hidden = true;
  }

  async function ask({ server, sessionId, epoch }) {
    const late = { status: "The summary is not there yet. It may still be on its way." };
    try {
      const answer = await fetch(`${server}/sessions/${encodeURIComponent(sessionId)}`, {
        cache: "no-store",
        headers: Identity.headers(),
        signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
      });
      if (!answer.ok) return { hopeless: true, status: "The server could not say how the session ended." };
      return outcomeOf(await answer.json(), epoch) ?? late;
    } catch {
      return { hopeless: true, status: "The server could not be reached to read the summary." };
    }
  }

  /** What a session's row means for the epoch we had, or null while it is not finished. */
  function outcomeOf(row, epoch) {
    if (row.epoch !== epoch) {
      return { final: true, status: "This session was opened again; its summary is written when it ends." };
    }
    if (!row.end_time && row.live) {
      return { hopeless: true, status: "Another window is still in this session; the summary is written when it leaves." };
    }
    if (!row.end_time && row.summarised === false) {
      return { final: true, status: "This server writes no summaries: it has neither a queue nor a summary function." };
    }
    if (!row.end_time) return null;
    return { final: true, text: row.final_summary || "There is no summary.", duration: humanDuration(row.duration ?? 0) };
  }

  /** Whole seconds in words: "1 min 12 s". */
  function humanDuration(seconds) {
    const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
    if (hours) return `${hours} h ${minutes} min`;
    if (minutes) return `${minutes} min ${seconds % 60} s`;
    return seconds < 1 ? "under a second" : `${seconds} s`;
  }

  function show({ status = "", text = "", duration = "", waiting = false, again = false }) {
    $("summary").hidden = false;
    $("summary").setAttribute("aria-busy", String(waiting));
    $("summary-status").textContent = status;
    $("summary-status").hidden = !status;
    $("summary-text").textContent = text;
    $("summary-text").hidden = !text;
    $("summary-duration").textContent = duration;
    $("summary-facts").hidden = !duration;
    $("summary-again").hidden = !again;
  }

  $("summary-again").addEventListener("click", () => {
    const { server, sessionId, epoch } = current;
    $("message").focus(); // the button that had the focus goes
    watch(server, sessionId, epoch);
  });

  return { watch, hide, humanDuration, outcomeOf };
})();
