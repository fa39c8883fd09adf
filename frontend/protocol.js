"use strict";
/* Wire protocol, version 1, as the page needs it: frames to send, frames to read, and what every error and close
   code means to a person. The tables mirror `ErrorCode` and `CloseCode` in realtime/chat/protocol.py. */

const Protocol = (() => {
  const VERSION = 1;

  /* Whether coming back can help, and what to say. 1006 and others that are not listed mean a lost network. */
  const CLOSE_CODES = {
    1000: { reconnect: false, text: "You are disconnected." },
    1003: { reconnect: false, text: "The server did not understand this page. Reload it, then connect again." },
    1007: { reconnect: false, text: "The server could not read what this page sent. Reload it, then connect again." },
    1009: { reconnect: false, text: "The server closed the connection: the message was too large. Shorten it, then connect again." },
    1011: { reconnect: true, text: "The connection went silent." },
    1012: { reconnect: true, text: "The server is restarting." },
    1013: { reconnect: true, text: "The server is full at the moment." },
    4400: { reconnect: false, text: "The server does not accept this session or user id. Change it, then connect again." },
    4401: { reconnect: true, text: "Your sign-in has ended." },
    4403: { reconnect: false, text: "This session belongs to another user. Check the user id, or start a new session." },
    4404: { reconnect: false, text: "This conversation was removed." },
    4429: { reconnect: true, text: "You have more open, or sent more, than the server allows one visitor." },
    4408: { reconnect: true, text: "This page could not keep up with the reply." },
    4500: { reconnect: true, text: "Something went wrong on our side." },
    4503: { reconnect: true, text: "The conversation cannot be opened at the moment. Nothing is lost." },
  };
  const LOST = { reconnect: true, text: "The connection was lost." };

  /* What can be done about a message that was refused: send it `again` as it is, or `edit` it first. */
  const ERRORS = {
    bad_json: { text: "The server could not read what this page sent. Reload the page and try again." },
    unknown_type: { text: "The server does not know what this page asked for. Reload the page and try again." },
    bad_field: { text: "The server could not use what this page sent. Reload the page and try again." },
    empty_message: { text: "There is nothing in this message to send.", remedy: "edit" },
    message_id_used: { text: "This message was sent under the number of another one.", detail: true, remedy: "edit" },
    message_too_long: { text: "This message is too long.", detail: true, remedy: "edit" },
    bad_session_id: { text: "A session id has 1 to 128 letters, digits, hyphens or underscores." },
    bad_user_id: { text: "A user id has at most 128 printable characters." },
    not_your_session: { text: "This session belongs to another user. Check the user id, or start a new session." },
    unauthorized: { text: "The server does not know who you are. Sign in again." },
    auth_unavailable: { text: "Your sign-in cannot be checked at the moment." },
    rate_limited: { text: "That was too much at once.", detail: true, remedy: "again" },
    quota_exceeded: { text: "Today's allowance is used up.", detail: true, remedy: "again" },
    at_capacity: { text: "The server is full at the moment." },
    restarting: { text: "The server is restarting." },
    busy: { text: "A reply is still being written. Send this again when it is done, or stop it first.", remedy: "again" },
    store_unavailable: { text: "The server cannot store messages right now. Send this again in a moment.", remedy: "again" },
    model_unavailable: { text: "The assistant could not be reached. Your message is kept; please try again." },
    model_rate_limited: { text: "The assistant is getting too many requests. Wait a moment, then try again." },
    model_refused: { text: "The assistant declined to answer this." },
    model_key: { text: "The assistant is not set up correctly: its provider refuses the server's key. Please tell the site's owner." },
    model_unknown: { text: "The assistant is not set up correctly: its provider does not know the model. Please tell the site's owner." },
    model_bad_request: { text: "The assistant's provider did not understand the server. Please tell the site's owner." },
    model_quota: { text: "The assistant's account is used up. Please tell the site's owner." },
    model_timeout: { text: "The assistant took too long to answer. Please try again." },
    internal: { text: "Something went wrong on the server. Your message is kept; please try again." },
  };

  /** The meaning of a close code: `{reconnect, text}`. */
  function closeMeaning(code) {
    return CLOSE_CODES[code] ?? LOST;
  }

  /** An `error` frame in words, and what can be done: `{text, remedy}`. An unknown code keeps the server's words. */
  function errorMeaning(frame) {
    const known = Object.hasOwn(ERRORS, frame.code) ? ERRORS[frame.code] : { text: frame.message, remedy: "again" };
    const text = known.detail && frame.message ? `${known.text} ${frame.message}` : known.text;
    return { text: text || "Something went wrong.", remedy: known.remedy ?? null };
  }

  /** A server's frame as an object, or null if it is not one, so that a bad frame does not stop the page. */
  function parse(text) {
    try {
      const frame = JSON.parse(text);
      return frame !== null && typeof frame === "object" && typeof frame.type === "string" ? frame : null;
    } catch {
      return null;
    }
  }

  function message(content, messageId) {
    return JSON.stringify({ type: "message", content: wellFormed(content), message_id: messageId });
  }

  function auth(token) {
    return JSON.stringify({ type: "auth", token });
  }

  function cancel(turnId) {
    return JSON.stringify({ type: "cancel", turn_id: turnId });
  }

  function ping() {
    return JSON.stringify({ type: "ping" });
  }

  /* Half of a surrogate pair, as a cut through an emoji leaves it, is not Unicode: the server refuses it. */
  function wellFormed(text) {
    return text.toWellFormed ? text.toWellFormed() : text.replace(/\p{Surrogate}/gu, "\uFFFD");
  }

  /** The address of a session's socket, from the server's http(s) address; `position` says how far it was read. */
  function socketUrl(server, sessionId, userId, position) {
    const query = new URLSearchParams();
    if (userId) query.set("user_id", userId);
    if (position) {
      query.set("epoch", position.epoch);
      query.set("after", position.seq);
    }
    return `${server.replace(/^http/, "ws")}/ws/session/${encodeURIComponent(sessionId)}${query.size ? `?${query}` : ""}`;
  }

  /** A server's address in the form that the rest of the page uses, or null if the text is not one. */
  function serverAddress(text) {
    try {
      const url = new URL(text.includes("://") ? text : `http://${text}`);
      return /^https?:$/.test(url.protocol) && /^[\w.:[\]-]+$/.test(url.host) ? url.origin + url.pathname.replace(/\/+$/, "") : null;
    } catch {
      return null;
    }
  }

  /** A new unique id. `randomUUID` is missing where the page is not served securely, so its bytes are drawn by hand. */
  function newId() {
    if (crypto.randomUUID) return crypto.randomUUID();
    const hex = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20)}`;
  }

  /** A new session id: short enough to read out, random enough that nobody guesses it. */
  function newSessionId() {
    const letters = "abcdefghijkmnpqrstuvwxyz23456789"; // 32 of them, so that a byte's low bits choose evenly
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => letters[byte & 31]).join("");
  }

  return {
    VERSION, CLOSE_CODES, ERRORS, closeMeaning, errorMeaning, parse, message, auth, cancel, ping,
    socketUrl, serverAddress, newId, newSessionId,
  };
})();
