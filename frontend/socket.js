"use strict";
/* One lasting connection over many sockets: it reconnects, keeps the line warm, and notices a server gone silent.
   States: `disconnected`, `connecting` (never ready yet), `connected` (from `ready` on), `reconnecting`. */

const Socket = (() => {
  const FIRST_DELAY_MS = 500;
  const MOST_DELAY_MS = 15_000;
  const CONNECT_MS = 15_000; // a little over what the server takes at most to open a session
  const PING_EVERY_MS = 25_000; // load balancers cut sockets that are idle for a minute
  const PONG_WITHIN_MS = 10_000;
  const OFFLINE_PONG_WITHIN_MS = 1_000; // a server on this very device answers still

  /** How long to wait before the next try. The jitter keeps a server's clients from all coming back at once. */
  function backoff(attempt) {
    return Math.min(MOST_DELAY_MS, FIRST_DELAY_MS * 2 ** attempt) * (0.5 + Math.random() / 2);
  }

  /**
   * Connect to `url()`, and stay connected until `close` is called or the server says not to come back.
   * `url` is called for every try, because the address says how far the stream was read; so is `protocols`, which
   * promises the subprotocols, because a token among them may have ended.
   *
   * `onFrame(frame)` gets every frame; `onState(state, {code, text})` every change, with words for why.
   */
  function open(url, { protocols, onFrame, onState }) {
    let socket = null;
    let tries = 0;
    let state = "disconnected";
    let everReady = false;
    let attempt = 0;
    let atLeast = 0; // milliseconds the server asked us to stay away
    let retryTimer = null;
    let pingTimer = null;
    let silenceTimer = null;

    function become(next, why = {}) {
      state = next;
      onState(next, why);
    }

    async function connect() {
      clearTimeout(retryTimer);
      become(everReady ? "reconnecting" : "connecting");
      const mine = (tries += 1);
      let offered;
      try {
        offered = await protocols();
      } catch (problem) {
        if (mine !== tries) return;
        if (problem instanceof Identity.SignInNeeded) rest({ code: 4401, text: problem.message });
        else lost(1006);
        return;
      }
      if (mine === tries) join(offered);
    }

    function join(offered) {
      const mine = (socket = new WebSocket(url(), offered));
      expectFrame(CONNECT_MS);
      // An abandoned socket may still deliver events; only the current one counts.
      mine.onmessage = (event) => mine === socket && receive(event.data);
      mine.onclose = (event) => mine === socket && lost(event.code);
    }

    function receive(data) {
      const frame = Protocol.parse(data);
      if (!frame) return;
      if (state === "connected" || frame.type === "ready") heard();
      if (frame.type === "ready") {
        attempt = 0;
        everReady = true;
        become("connected");
      } else if (frame.type === "error" && state !== "connected") {
        atLeast = (frame.retry_after ?? 0) * 1000;
      } else if (frame.type === "goodbye") {
        atLeast = frame.reconnect_in_ms ?? 0;
      }
      onFrame(frame);
    }

    function heard() {
      clearTimeout(silenceTimer);
      clearTimeout(pingTimer);
      pingTimer = setTimeout(() => ping(), PING_EVERY_MS);
    }

    function ping(withinMs = PONG_WITHIN_MS) {
      clearTimeout(pingTimer);
      send(Protocol.ping());
      expectFrame(withinMs);
    }

    function offline() {
      if (state === "connected") ping(OFFLINE_PONG_WITHIN_MS);
    }

    function expectFrame(withinMs) {
      clearTimeout(silenceTimer);
      silenceTimer = setTimeout(() => giveUp(1011), withinMs);
    }

    /* Let the socket go without waiting for its close event, which a dead network delivers minutes later. */
    function giveUp(code) {
      const old = socket;
      socket = null;
      old?.close(4000, "lost"); // any code but 1000, which would end the session, and 1001, which would soon
      lost(code);
    }

    function lost(code) {
      socket = null;
      tries += 1;
      const { reconnect, text: meaning } = Protocol.closeMeaning(code);
      const text = navigator.onLine ? meaning : "This device is offline.";
      if (!reconnect) {
        rest({ code, text });
        return;
      }
      clearTimeout(pingTimer);
      clearTimeout(silenceTimer);
      const delay = Math.max(atLeast, backoff(attempt));
      attempt += 1;
      atLeast = 0;
      retryTimer = setTimeout(connect, delay);
      become(everReady ? "reconnecting" : "connecting", { code, text });
    }

    /* A laptop that wakes, or a tab that comes to the front, should not sit out a timer that slept with it. */
    function wake() {
      if (document.hidden) return;
      if (state === "connected") ping();
      else if (state !== "disconnected" && !socket) connect();
    }

    function send(text) {
      if (state !== "connected" || !socket || socket.readyState !== WebSocket.OPEN) return false;
      socket.send(text);
      return true;
    }

    /** Leave for good: with 1000 the server ends the session and has its summary written. */
    function close() {
      const old = socket;
      socket = null;
      old?.close(1000);
      rest({ code: 1000, text: Protocol.closeMeaning(1000).text });
    }

    function rest(why) {
      tries += 1;
      for (const timer of [retryTimer, pingTimer, silenceTimer]) clearTimeout(timer);
      removeEventListener("online", wake);
      removeEventListener("offline", offline);
      document.removeEventListener("visibilitychange", wake);
      if (state !== "disconnected") become("disconnected", why);
    }

    addEventListener("online", wake);
    addEventListener("offline", offline);
    document.addEventListener("visibilitychange", wake);
    connect();
    return { send, close };
  }

  return { open, backoff };
})();
