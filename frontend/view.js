"use strict";
/* The page's DOM. It is told the whole state each time, and touches only what changed since it last drew. */

const View = (() => {
  const AT_END_PX = 48;
  const NEAR_TOP_PX = 120;
  const STATUS = {
    disconnected: "Disconnected",
    connecting: "Connecting…",
    connected: "Connected",
    reconnecting: "Reconnecting…",
  };

  const $ = (id) => document.getElementById(id);
  const scroller = $("scroller");
  const log = $("log");
  const cards = new Map(); // by key: {node, update, append, item}
  let drawn = null; // the state the DOM shows
  let wanted = null;
  let following = true; // the reader is at the end, and wants to stay there

  /** Show this state when the screen next draws: a hundred tokens in between cost one update. */
  function render(state) {
    if (!wanted) requestAnimationFrame(draw);
    wanted = state;
  }

  function draw() {
    const state = wanted;
    wanted = null;
    const prepended = drawn && drawn.sessionId === state.sessionId && drawn.first !== state.first && drawn.items.length > 0;
    const below = scroller.scrollHeight - scroller.scrollTop;
    if (drawn?.items !== state.items || drawn.open !== state.open) drawItems(Conversation.shown(state));
    else if (drawn.tail !== state.tail) cards.get(state.tail.key).append(state.tail.text);
    if (drawn?.mode !== state.mode) drawMode(state.mode);
    if (prepended) scroller.scrollTop = scroller.scrollHeight - below; // what is being read stays where it is
    $("earlier").hidden = !state.more;
    $("stop").hidden = state.open.length === 0;
    $("welcome").hidden = state.items.length > 0;
    drawn = state;
    follow();
  }

  function drawItems(items) {
    const keys = new Set(items.map((item) => item.key));
    for (const [key, card] of cards) {
      if (keys.has(key)) continue;
      card.node.remove();
      cards.delete(key);
    }
    let place = log.firstChild;
    for (const item of items) {
      let card = cards.get(item.key);
      if (!card) cards.set(item.key, (card = { ...Cards.create(item), item }));
      else if (card.item !== item) card.update((card.item = item));
      if (card.node === place) place = place.nextSibling;
      else log.insertBefore(card.node, place);
    }
  }

  function drawMode(mode) {
    $("mode").hidden = !mode;
    $("mode").textContent = mode ?? "";
    $("mode").dataset.mode = mode ?? "";
  }

  /** Show the connection's state, in words and by a light. */
  function connection(state) {
    document.body.dataset.connection = state;
    if ($("status-text").textContent !== STATUS[state]) $("status-text").textContent = STATUS[state];
    const off = state === "disconnected";
    $("connect").textContent = off ? "Connect" : "Disconnect";
    $("connect").classList.toggle("primary", off);
    for (const id of ["session", "user", "server", "renew"]) $(id).disabled = !off;
  }

  /** Say what is wrong with the connection; without a text the banner goes away. */
  function banner(text = "", tone = "info") {
    const node = $("banner");
    node.hidden = !text;
    node.dataset.tone = tone;
    if (node.textContent !== text) node.textContent = text;
  }

  /** Have a screen reader say this once. Nothing is visible. */
  function announce(text) {
    $("announcer").textContent = text;
  }

  // Scrolling: the end stays in sight for a reader who is there, and nothing moves under one who reads further up.

  function follow() {
    if (following) scroller.scrollTop = scroller.scrollHeight;
    else noteScroll();
  }

  /** Show how the loading of earlier messages is going: "idle", "loading" or "failed". */
  function earlier(how) {
    $("earlier").dataset.state = how;
    $("earlier-status").textContent = { loading: "Loading earlier messages…", failed: "They could not be loaded." }[how] ?? "";
    $("earlier-button").textContent = how === "failed" ? "Try again" : "Show earlier messages";
    $("earlier-button").hidden = how === "loading";
  }

  /** Call this when the reader has come close to the top of what is drawn. */
  function onTop(load) {
    scroller.addEventListener("scroll", () => scroller.scrollTop < NEAR_TOP_PX && load(), { passive: true });
    $("earlier-button").addEventListener("click", load);
  }

  function noteScroll() {
    following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < AT_END_PX;
    $("jump").hidden = following;
  }

  function jump() {
    following = true;
    $("jump").hidden = true;
    follow();
  }

  scroller.addEventListener("scroll", noteScroll, { passive: true });
  new ResizeObserver(follow).observe(scroller);
  new ResizeObserver(follow).observe($("stream"));
  $("jump").addEventListener("click", () => {
    jump();
    $("message").focus(); // the button that had the focus is gone
  });

  log.addEventListener("click", (event) => {
    const button = event.target.closest('[data-action="unclip"]');
    if (!button) return;
    const open = button.getAttribute("aria-expanded") !== "true";
    following = false; // the reader looks at this, not at the end
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Show less" : button.dataset.label;
    button.previousElementSibling.classList.toggle("clipped", !open);
  });

  /** Who the visitor is, and how they may say so. */
  function identity({ kind, name, id, providers = [] }) {
    $("user-field").hidden = kind !== "none";
    $("identity").hidden = !name;
    $("identity-name").textContent = name ?? "";
    $("identity-name").title = id ?? "";
    $("forget").hidden = !name;
    $("sign-in").hidden = kind !== "supabase" || Boolean(name);
    $("sign-in-providers").replaceChildren(...providers.map(provider));
  }

  function provider(name) {
    const button = document.createElement("button");
    Object.assign(button, { type: "submit", value: name, className: "quiet", formNoValidate: true });
    button.textContent = `Continue with ${name[0].toUpperCase()}${name.slice(1)}`;
    return button;
  }

  return { identity, render, connection, banner, announce, jump, earlier, onTop };
})();
