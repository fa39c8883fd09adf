"use strict";
/* Who the visitor is to the server: nobody in particular, a guest whose token this page keeps and renews, or somebody
   who signs in with Supabase (accounts.js). The server says at `/auth` which of them it wants. */

const Identity = (() => {
  const KEPT = "realtime-guest"; // in localStorage: tomorrow, and in another tab, it is the same guest
  const SOON_MS = 5 * 60_000; // a token that ends within this is renewed before it is used
  const WITHIN_MS = 10_000;

  /** Nobody is signed in, and the server wants somebody. */
  class SignInNeeded extends Error {}

  let server = null;
  let wanted = null; // what the server says at /auth: {auth: "none" | "guest" | "supabase" | "jwt", …}
  let guest = null; // {token, user_id, expires_at}

  /** What to open a socket with: its subprotocols, which carry the token. Rejects where there is none to be had. */
  async function protocols(address) {
    await settle(address);
    const token = await current();
    return token ? ["realtime.v1", `bearer.${token}`] : [];
  }

  /** What to ask over HTTP with. */
  function headers() {
    const token = guest?.token ?? Accounts.token();
    return token ? { Authorization: `Bearer ${token}` } : {};
  }

  /** A new token for a socket that is open, or null where there is none to be had. */
  async function renewed() {
    if (wanted?.auth === "guest") return (await signIn()).token;
    return wanted?.auth === "supabase" ? Accounts.renew() : null;
  }

  /** Be somebody else from now on. */
  async function forget() {
    guest = null;
    store(null);
    await Accounts.leave();
  }

  /** Find out who the visitor is to this server, if that can be told without asking them. */
  async function look(address) {
    await settle(address);
    return shown();
  }

  /** Ask the server how it wants to know who comes, once. */
  async function settle(address) {
    if (wanted && server === address) return;
    server = address;
    const answer = await fetch(`${server}/auth`, { signal: AbortSignal.timeout(WITHIN_MS) });
    const said = answer.status === 404 ? { auth: "none" } : await read(answer);
    guest = said.auth === "guest" ? recall() : null;
    if (said.auth === "supabase") {
      await Accounts.start(said).catch((problem) => {
        throw new SignInNeeded(problem.message);
      });
    }
    wanted = said;
  }

  async function current() {
    if (wanted.auth === "none") return null;
    if (wanted.auth === "guest") {
      if (!guest || Date.parse(guest.expires_at) - Date.now() < SOON_MS) await signIn();
      return guest.token;
    }
    const token = wanted.auth === "supabase" ? Accounts.token() : null;
    if (!token) throw new SignInNeeded("Sign in to chat.");
    return token;
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

  /** Who it is, for the page: the kind of sign-in, a name, and the user id behind it. */
  function shown() {
    const kind = wanted?.auth ?? null;
    if (guest) return { kind, name: "as a guest", id: guest.user_id };
    return { kind, name: Accounts.name(), id: Accounts.id(), providers: wanted?.providers ?? [] };
  }

  return { SignInNeeded, look, protocols, headers, renewed, forget, shown };
})();
