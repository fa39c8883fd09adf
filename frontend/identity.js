"use strict";
/* Who the visitor is to the server: nobody in particular, a guest whose token this page keeps and renews, or somebody
   who signed in elsewhere. The server says at `/auth` which of them it wants. */

const Identity = (() => {
  const KEPT = "realtime-guest"; // in localStorage: tomorrow, and in another tab, it is the same guest
  const SOON_MS = 5 * 60_000; // a token that ends within this is renewed before it is used
  const WITHIN_MS = 10_000;

  let server = null;
  let kind = null; // "none", "guest", "supabase" or "jwt", once the server has said
  let guest = null; // {token, user_id, expires_at}

  /** What to open a socket with: its subprotocols, which carry the token. Rejects where the server does not answer. */
  async function protocols(address) {
    await settle(address);
    const given = await token();
    return given ? ["realtime.v1", `bearer.${given}`] : [];
  }

  /** What to ask over HTTP with. */
  function headers() {
    return guest ? { Authorization: `Bearer ${guest.token}` } : {};
  }

  /** A new token for a socket that is open, or null where there is none to be had. */
  async function renewed() {
    return kind === "guest" ? (await signIn()).token : null;
  }

  /** Be somebody else from now on. */
  function forget() {
    guest = null;
    store(null);
  }

  /** Ask the server how it wants to know who comes, once. */
  async function settle(address) {
    if (kind && server === address) return;
    server = address;
    const answer = await fetch(`${server}/auth`, { signal: AbortSignal.timeout(WITHIN_MS) });
    kind = answer.status === 404 ? "none" : (await read(answer)).auth;
    guest = kind === "guest" ? recall() : null;
  }

  async function token() {
    if (kind !== "guest") return null;
    if (!guest || Date.parse(guest.expires_at) - Date.now() < SOON_MS) await signIn();
    return guest.token;
  }

  /* With the token it has, the guest stays the same one; the server knows for a month. */
  async function signIn() {
    const before = recall() ?? guest;
    const answer = await fetch(`${server}/auth/guest`, {
      method: "POST",
      headers: before ? { Authorization: `Bearer ${before.token}` } : {},
      signal: AbortSignal.timeout(WITHIN_MS),
    });
    guest = await read(answer);
    store(guest);
    return guest;
  }

  async function read(answer) {
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    return answer.json();
  }

  function recall() {
    try {
      const { of, ...kept } = JSON.parse(localStorage.getItem(KEPT)) ?? {};
      return of === server && kept.token ? kept : null;
    } catch {
      return null; // no storage, or something else is in it
    }
  }

  function store(kept) {
    try {
      if (kept) localStorage.setItem(KEPT, JSON.stringify({ of: server, ...kept }));
      else localStorage.removeItem(KEPT);
    } catch {
      // Without storage the guest lasts as long as the page.
    }
  }

  return { protocols, headers, renewed, forget, kind: () => kind, name: () => guest?.user_id ?? null };
})();
