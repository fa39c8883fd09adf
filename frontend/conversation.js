"use strict";
/* The conversation as the page shows it. `reduce(state, frame) -> state` is the whole interface: pure, no DOM, no
   network, so it can be tested by feeding it frames. What the user does comes in the same way, as `local_*` frames.

   A state never changes; a new one shares what stayed the same, so the view compares by identity:
     items  user | assistant | tool_call | tool_result | notice, in the order in which they are shown
     tail   {key, turnId, text} of the reply being streamed. Its item in `items` is not touched per token: taking a
            token in is O(1), however long the conversation is.
     open   ids of the turns that are not done; the first is the one being answered.
     first  the event id of the earliest event that is drawn, and `more`: whether the conversation began before it. */

const Conversation = (() => {
  function initial(sessionId = null) {
    return { sessionId, epoch: null, seq: 0, mode: null, items: [], tail: null, open: [], first: null, more: false };
  }

  function reduce(state, frame) {
    if (!Object.hasOwn(ON, frame.type)) return state; // a newer server's frame
    // Within an epoch `seq` only rises, and nothing must be shown twice.
    const numbered = typeof frame.seq === "number" && frame.type !== "ready" && frame.type !== "error";
    if (numbered && frame.seq <= state.seq) return state;
    const next = ON[frame.type](state, frame);
    return numbered ? { ...next, seq: frame.seq } : next;
  }

  const ON = {
    ready: (state, frame) => (frame.resumed ? resume(state, frame) : redraw(state, frame)),
    mode: (state, frame) => ({ ...state, mode: frame.mode }),

    accepted(state, frame) {
      const known = state.items.find((item) => item.messageId === frame.message_id);
      const sent = { status: "sent", acceptedSeq: frame.seq, turnId: frame.turn_id, error: null };
      const items = known
        ? state.items.map((item) => (item.messageId === frame.message_id && item.status !== "saved" ? { ...item, ...sent } : item))
        : // Another window on this session said it.
          place(state.items, { ...userItem(frame.message_id, frame.content), ...sent });
      // If this is the second time it is accepted, its turn may be over; if it is not, the turn's own frames will tell.
      return known?.acceptedSeq ? { ...state, items } : opened({ ...state, items }, frame.turn_id);
    },

    token(state, frame) {
      const { tail } = state;
      if (tail && tail.turnId === frame.turn_id) return { ...state, tail: { ...tail, text: tail.text + frame.content } };
      const settled = opened(settle(state), frame.turn_id);
      const item = assistantItem(settled.items, frame.turn_id, "", "streaming");
      return { ...settled, items: place(settled.items, item), tail: { key: item.key, turnId: frame.turn_id, text: frame.content } };
    },

    tool_call(state, frame) {
      const settled = opened(settle(state), frame.turn_id);
      return { ...settled, items: place(settled.items, callItem(frame.turn_id, frame, "running")) };
    },

    tool_result(state, frame) {
      return { ...state, items: withResult(state.items, frame.turn_id, frame, frame.error ?? null) };
    },

    done(state, frame) {
      const settled = settle(state);
      const items = finish(settled.items, frame.turn_id, frame.reason);
      return { ...settled, items, open: settled.open.filter((turnId) => turnId !== frame.turn_id) };
    },

    saved(state, frame) {
      const due = (item) => item.kind === "user" && item.status === "sent" && item.acceptedSeq <= frame.through;
      if (!state.items.some(due)) return state;
      return { ...state, items: state.items.map((item) => (due(item) ? { ...item, status: "saved" } : item)) };
    },

    local_earlier: earlier,

    error(state, frame) {
      // The server is going away: the message stays as it is, and is sent to the server we reach next.
      if (frame.code === "restarting" && frame.message_id) return state;
      const refused = (item) => item.messageId === frame.message_id && item.kind === "user";
      if (frame.message_id && state.items.some(refused)) {
        return { ...state, items: state.items.map((item) => (refused(item) ? { ...item, status: "failed", error: frame } : item)) };
      }
      const settled = settle(state);
      const notice = { kind: "notice", key: `e:${state.epoch}/${frame.seq}`, turnId: frame.turn_id ?? null, error: frame };
      return { ...settled, items: place(settled.items, notice) };
    },

    local_said: (state, frame) => ({ ...state, items: [...state.items, userItem(frame.message_id, frame.content)] }),
    local_again: (state, frame) => ({
      ...state,
      items: state.items.map((item) => (item.messageId === frame.message_id ? { ...item, status: "sending", error: null } : item)),
    }),
    local_withdrawn: (state, frame) => ({ ...state, items: state.items.filter((item) => item.messageId !== frame.message_id) }),
    /* The connection is gone for good: nobody will tell how the open turns ended. */
    local_left(state) {
      const settled = settle(state);
      return { ...settled, items: settled.open.reduce((items, turnId) => finish(items, turnId, "lost"), settled.items), open: [] };
    },
  };

  /** The messages that the server has not accepted, oldest first, to be sent on a new connection. */
  function unsent(state) {
    return state.items.filter((item) => item.kind === "user" && item.status === "sending");
  }

  /** What to show: the items, and a `thinking` one if the running turn has nothing to show yet. */
  function shown(state) {
    const list = items(state);
    const [turnId] = state.open;
    if (!turnId || state.tail) return list;
    const last = list.findLast((item) => item.turnId === turnId);
    return last?.status === "running" ? list : place(list, { kind: "thinking", key: "thinking", turnId });
  }

  /** The items with the streamed text in its place. */
  function items({ items, tail }) {
    return tail ? items.map((item) => (item.key === tail.key ? { ...item, text: tail.text } : item)) : items;
  }

  /* `ready` after a drop: what was drawn stays, the frames that were missed follow, and the stream goes on. */
  function resume(state, frame) {
    return { ...state, mode: frame.mode };
  }

  /* `ready`: the server's history replaces what was drawn, and what it does not know yet stays. */
  function redraw(state, frame) {
    const before = items(state.sessionId === frame.session_id ? state : initial());
    const said = new Map(before.filter((item) => item.kind === "user").map((item) => [item.messageId, item]));
    const sameEpoch = state.epoch === frame.epoch;
    const turns = new Set(frame.history.map((event) => event.turn_id));
    // The server sends the last few hundred events; what this page has from before them stays.
    const overlap = before.findIndex((item) => turns.has(item.turnId));
    let drawn = overlap > 0 ? before.slice(0, overlap).filter((item) => item.turnId) : [];
    const kept = drawn.length > 0;
    const unfinished = new Set();
    const { unsaved } = frame;
    const stored = frame.history.length - (unsaved?.length ?? 0);
    for (const [index, event] of frame.history.entries()) {
      const due = unsaved ? (index < stored ? null : unsaved[index - stored]) : event.id > 0 ? null : frame.seq;
      drawn = drawEvent(drawn, event, due, said, sameEpoch);
      if (event.role === "user") unfinished.add(event.turn_id);
      if (event.metadata.reason) unfinished.delete(event.turn_id);
    }
    // No reply will come to these: the server went down before it answered. Others may be waiting behind the running turn.
    for (const turnId of unfinished) {
      if (turnId === frame.active_turn_id) break;
      drawn = finish(drawn, turnId, "lost");
    }
    // A message that was accepted but is neither saved nor in the history died with the server: it is sent again.
    const shown = new Set(drawn.map((item) => item.messageId));
    const left = [...said.values()].filter((item) => item.status !== "saved" && !shown.has(item.messageId));
    return {
      sessionId: frame.session_id,
      epoch: frame.epoch,
      seq: frame.seq,
      mode: frame.mode,
      items: [...drawn, ...left.map((item) => (item.status === "failed" ? item : unaccepted(item, sameEpoch)))],
      tail: null,
      open: frame.active_turn_id ? [frame.active_turn_id] : [],
      first: kept ? state.first : (frame.history[0]?.event_id ?? null),
      more: kept ? state.more : (frame.more ?? false),
    };
  }

  /* Events from before all that is drawn. A turn may begin among them and end below. */
  function earlier(state, { events, more }) {
    if (!events.length) return { ...state, more: false };
    let drawn = [];
    for (const event of events) drawn = drawEvent(drawn, event, null, new Map(), false);
    const below = new Set(state.items.map((item) => item.turnId));
    const answered = new Set(state.items.filter((item) => item.kind === "tool_result").map((item) => item.callId));
    const older = drawn.map((item) => {
      if (!below.has(item.turnId)) return item;
      const status = item.kind === "tool_call" && answered.has(item.callId) ? "answered" : item.status;
      return { ...item, status, key: `before:${events[0].event_id}:${item.key}` }; // the turn's keys are counted below
    });
    return { ...state, items: [...older, ...state.items], first: events[0].event_id, more };
  }

  function unaccepted(item, sameEpoch) {
    return { ...item, status: "sending", turnId: null, acceptedSeq: sameEpoch ? item.acceptedSeq : 0 };
  }

  /* `due` is the number through which the event will be saved, or null if it is. */
  function drawEvent(drawn, event, due, said, sameEpoch) {
    const { metadata, turn_id: turnId } = event;
    if (event.role === "user") {
      const messageId = metadata.message_id ?? event.event_id;
      const known = said.get(messageId);
      const saved = due === null || known?.status === "saved";
      const acceptedSeq = (sameEpoch && known?.acceptedSeq) || (due ?? 0);
      return place(drawn, { ...userItem(messageId, event.content), status: saved ? "saved" : "sent", acceptedSeq, turnId });
    }
    if (event.role === "tool") {
      if (metadata.kind === "call") return place(drawn, callItem(turnId, metadata, "running"));
      const content = parsed(event.content);
      return withResult(drawn, turnId, { ...metadata, result: content }, metadata.ok ? null : String(content?.error ?? event.content));
    }
    const items = event.content ? place(drawn, assistantItem(drawn, turnId, event.content, "done")) : drawn;
    return metadata.reason ? finish(items, turnId, metadata.reason) : items;
  }

  function parsed(text) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }

  // Items

  function userItem(messageId, text) {
    return { kind: "user", key: `m:${messageId}`, messageId, text, status: "sending", acceptedSeq: 0, turnId: null, error: null };
  }

  /* Keys name the same thing before and after a redraw: the n-th piece of text of this turn. */
  function assistantItem(items, turnId, text, status) {
    const pieces = items.filter((item) => item.kind === "assistant" && item.turnId === turnId).length;
    return { kind: "assistant", key: `a:${turnId}/${pieces}`, turnId, text, status };
  }

  function callItem(turnId, { call_id: callId, name, arguments: args }, status) {
    return { kind: "tool_call", key: `c:${turnId}/${callId}`, turnId, callId, name, arguments: args, status };
  }

  function withResult(items, turnId, { call_id: callId, name, result = null }, error) {
    const shown = { kind: "tool_result", key: `r:${turnId}/${callId}`, turnId, callId, name, result, error };
    const called = items.findIndex((item) => item.key === `c:${turnId}/${callId}`);
    if (called === -1) return place(items, shown); // the call is older than the history
    // Tools run side by side and answer in any order; each result belongs under its call.
    return [...items.slice(0, called), { ...items[called], status: "answered" }, shown, ...items.slice(called + 1)];
  }

  /* Turns stay together: while one is answered, the messages that wait are already below it. */
  function place(items, item) {
    const last = item.turnId === null ? -1 : items.findLastIndex((other) => other.turnId === item.turnId);
    return last === -1 ? [...items, item] : [...items.slice(0, last + 1), item, ...items.slice(last + 1)];
  }

  // Turns

  function opened(state, turnId) {
    return state.open.includes(turnId) ? state : { ...state, open: [...state.open, turnId] };
  }

  /* The streamed text becomes an item like any other. */
  function settle(state) {
    if (!state.tail) return state;
    const { key } = state.tail;
    const settled = items(state).map((item) => (item.key === key ? { ...item, status: "done" } : item));
    return { ...state, items: settled, tail: null };
  }

  /* How a turn ended is shown at the last thing it said; where it said nothing last, on a line of its own. */
  function finish(items, turnId, reason) {
    const closed = items.map((item) =>
      item.turnId === turnId && item.status === "running" ? { ...item, status: "answered" } : item);
    const last = closed.findLast((item) => item.turnId === turnId && item.kind !== "notice");
    const status = { complete: "done", cancelled: "stopped", length: "length", cut: "cut" }[reason] ?? "interrupted";
    if (last?.kind === "assistant") return closed.map((item) => (item === last ? { ...item, status } : item));
    return place(closed, assistantItem(closed, turnId, "", status));
  }

  return { initial, reduce, unsent, items, shown };
})();
