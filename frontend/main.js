"use strict";
/* The wiring: what the user does and what the server says, to the conversation's state and from there to the view. */

(() => {
  const FROM_DISK = !location.protocol.startsWith("http");
  const REMEMBERED = "realtime-chat"; // in sessionStorage: it goes with the tab
  const EARLIER = 100; // events at once
  const EARLIER_WITHIN_MS = 10_000;
  const COMPOSING = 229; // the key code of a key that an input method takes; Safari's last one comes after the composition
  const $ = (id) => document.getElementById(id);

  let state = Conversation.initial();
  let connection = null;
  let status = "disconnected";
  let server = null;
  let loadingEarlier = false;
  let refusal = ""; // why the server did not let us in; its close code follows

  function dispatch(frame) {
    state = Conversation.reduce(state, frame);
    View.render(state);
  }

  // The connection

  function connect() {
    $("session").value ||= Protocol.newSessionId();
    if (!$("connection").reportValidity()) return false;
    server = Protocol.serverAddress($("server").value.trim());
    if (!server) {
      $("settings").open = true;
      View.banner("The server address should look like http://localhost:8000.", "problem");
      $("server").focus();
      return false;
    }
    const sessionId = $("session").value;
    // Messages waiting to be sent were said to this session, or before there was one.
    if (state.sessionId !== null && state.sessionId !== sessionId) state = Conversation.initial();
    state = { ...state, sessionId };
    View.render(state);
    Summary.hide();
    connection?.close();
    const userId = $("user").value.trim();
    // The server need not resend what this page has drawn; it says whether it can go on from there.
    const url = () => Protocol.socketUrl(server, sessionId, userId, state.epoch === null ? null : state);
    connection = Socket.open(url, { protocols: () => Identity.protocols(server), onFrame, onState });
    if (document.activeElement?.tagName === "INPUT") $("message").focus(); // the field it is in is disabled now
    remember(true);
    return true;
  }

  function disconnect() {
    remember(false);
    connection.close();
  }

  function onState(next, { code, text } = {}) {
    const leaving = next === "disconnected";
    status = next;
    View.connection(next);
    if (next === "connected") {
      refusal = "";
      View.identity(Identity.shown());
      View.banner();
    } else if (leaving) {
      left(code, text);
    } else if (code) {
      const unreachable = next === "connecting" && code === 1006;
      View.banner(`${refusal || (unreachable ? `The server at ${server} cannot be reached.` : text)} Trying again…`, "waiting");
      refusal = "";
    }
  }

  function left(code, text) {
    if (code === 4401) View.identity(Identity.shown());
    // If what the server closed for were sent again, it would close again.
    if (code === 1007 || code === 1009) {
      for (const { messageId } of Conversation.unsent(state)) {
        dispatch({ type: "error", seq: 0, code: "message_too_long", message_id: messageId });
      }
    }
    dispatch({ type: "local_left" });
    View.banner(code === 1000 ? "" : refusal || text, "problem");
    refusal = "";
    if (code !== 1000) remember(false);
    if (code === 1000 && state.epoch !== null) {
      Summary.watch(server, state.sessionId, state.epoch);
      View.jump();
    }
  }

  function onFrame(frame) {
    if (frame.type === "error" && status !== "connected") {
      refusal = Protocol.errorMeaning(frame).text;
      return;
    }
    if (frame.type === "auth_expiring") {
      renew();
      return;
    }
    dispatch(frame);
    if (frame.type === "ready") ready(frame);
    if (frame.type === "done") announce(frame);
  }

  /* Where that fails the server closes the socket, and the next one comes with a new token. */
  async function renew() {
    const token = await Identity.renewed().catch(() => null);
    if (token) connection.send(Protocol.auth(token));
  }

  function ready({ protocol }) {
    for (const item of Conversation.unsent(state)) send(item);
    if (protocol > Protocol.VERSION) View.banner("This page is older than the server. Reload it to get the new one.", "waiting");
  }

  /* Once, when it is whole: a screen reader that reads a stream as it comes is a torrent of fragments. */
  function announce({ turn_id: turnId, reason }) {
    const reply = Conversation.items(state).findLast((item) => item.turnId === turnId && item.kind === "assistant");
    const ended = { cancelled: "Reply stopped. ", error: "Reply interrupted. ", length: "Reply cut off. " }[reason] ?? "";
    View.announce(`${ended}${reply?.text ?? ""}`);
  }

  // What was said before

  async function eventsBefore(sessionId, eventId, limit) {
    const path = `sessions/${encodeURIComponent(sessionId)}/events?before=${eventId}&limit=${limit}`;
    const answer = await fetch(`${server}/${path}`, {
      headers: Identity.headers(),
      signal: AbortSignal.timeout(EARLIER_WITHIN_MS),
    });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    return answer.json();
  }

  async function loadEarlier() {
    const { sessionId, first, more } = state;
    if (!more || loadingEarlier) return;
    loadingEarlier = true;
    View.earlier("loading");
    try {
      const events = await eventsBefore(sessionId, first, EARLIER);
      // A page may end early because its events are large: whether it is the last one, the next one tells.
      const isFull = events.length === EARLIER;
      const more = isFull || (events.length > 0 && (await eventsBefore(sessionId, events[0].event_id, 1)).length > 0);
      // Meanwhile another conversation may have begun, or this one may have been redrawn.
      if (state.first === first) dispatch({ type: "local_earlier", events, more });
      View.earlier("idle");
      // Until they are drawn the reader is still at the top, which would load the next ones as well.
      for (let frames = 0; frames < 2; frames += 1) await new Promise(requestAnimationFrame);
    } catch {
      View.earlier("failed");
    } finally {
      loadingEarlier = false;
    }
  }

  // The user

  function say(text) {
    if (!text.trim()) return false;
    if (status === "disconnected" && !connect()) return false;
    const said = { type: "local_said", message_id: Protocol.newId(), content: text };
    dispatch(said);
    send({ messageId: said.message_id, text });
    View.jump();
    return true;
  }

  /* Where it cannot be sent now, it stays `sending`, and goes out with the next `ready`. */
  function send({ messageId, text }) {
    connection.send(Protocol.message(text, messageId));
  }

  function remedy(action, messageId) {
    const item = state.items.find((each) => each.messageId === messageId);
    if (action === "edit") {
      $("message").value = [item.text, $("message").value].filter(Boolean).join("\n"); // what was begun since stays
      dispatch({ type: "local_withdrawn", message_id: messageId });
      fit();
      $("message").focus();
    } else if (action === "again" && (status !== "disconnected" || connect())) {
      dispatch({ type: "local_again", message_id: messageId });
      send(item);
    }
  }

  async function enter(how) {
    const given = { email: $("sign-in-email").value.trim(), password: $("sign-in-password").value };
    $("sign-in").setAttribute("aria-busy", "true");
    const problem = await Accounts.enter(how, given).catch(() => "The sign-in service cannot be reached.");
    $("sign-in").setAttribute("aria-busy", "false");
    $("sign-in-status").textContent = problem;
    if (problem) return;
    $("sign-in-password").value = "";
    View.banner();
    View.identity(Identity.shown());
    connect();
  }

  function submit() {
    if (!say($("message").value)) return;
    $("message").value = "";
    fit();
  }

  /* The box grows with what is written, up to the style sheet's limit. */
  function fit() {
    const box = $("message");
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + 2}px`;
  }

  // What this tab remembers, so that a reload comes back to the same session

  function remember(connected) {
    const kept = { session: $("session").value, user: $("user").value, server: $("server").value, connected };
    try {
      sessionStorage.setItem(REMEMBERED, JSON.stringify(kept));
    } catch {
      // A page opened from disk may have no storage; then a reload begins a new session.
    }
  }

  function recall() {
    try {
      return JSON.parse(sessionStorage.getItem(REMEMBERED)) ?? {};
    } catch {
      return {};
    }
  }

  function start() {
    const kept = recall();
    $("session").value = kept.session || Protocol.newSessionId();
    $("user").value = kept.user || "";
    $("server").value = (FROM_DISK && kept.server) || (FROM_DISK ? "http://localhost:8000" : location.origin);
    View.connection("disconnected");
    View.render(state);

    $("connection").addEventListener("submit", (event) => {
      event.preventDefault();
      if (status === "disconnected") connect();
      else disconnect();
    });
    $("connect").addEventListener("click", (event) => {
      if (event.detail > 1) event.preventDefault(); // the second click of a double one would undo the first
    });
    View.onTop(loadEarlier);
    $("renew").addEventListener("click", () => {
      $("session").value = Protocol.newSessionId();
      Summary.hide();
      View.banner();
      state = Conversation.initial();
      View.render(state);
      $("message").focus();
    });
    $("forget").addEventListener("click", async () => {
      if (status !== "disconnected") disconnect();
      await Identity.forget();
      $("renew").click();
      View.identity(Identity.shown());
    });
    $("sign-in").addEventListener("submit", (event) => {
      event.preventDefault();
      enter(event.submitter?.value ?? "password");
    });
    Accounts.onToken((token) => connection?.send(Protocol.auth(token)));
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    $("message").addEventListener("keydown", (event) => {
      // While an input method composes, Enter picks a word.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === COMPOSING) return;
      event.preventDefault();
      submit();
    });
    $("message").addEventListener("input", fit);
    $("stop").addEventListener("click", () => {
      connection.send(Protocol.cancel(state.open[0]));
      $("message").focus(); // the button goes when the turn does
    });
    $("welcome").addEventListener("click", (event) => {
      const chip = event.target.closest("button");
      if (event.detail > 1) return; // the second click of a double one
      if (chip && say(chip.textContent)) $("message").focus();
    });
    $("log").addEventListener("click", (event) => {
      const { action, id } = event.target.dataset;
      if (id) remedy(action, id);
    });
    if (!FROM_DISK) Identity.look(location.origin).then(View.identity).catch(() => {}); // connecting says what is wrong
    if (kept.connected) connect();
  }

  start();
})();
