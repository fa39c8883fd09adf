"use strict";
/* One item of the conversation as DOM. Whatever a user, a model or a tool wrote goes in as text, never as HTML. */

const Cards = (() => {
  const CLIP_LINES = 16;
  const NARROW = 64; // characters; JSON that fits on such a line stays on one

  /** Make an element: properties, `data-` and `aria-` attributes, then children (nodes or text). */
  function el(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  /** An item's `{node, update(item)}`; that of an assistant's text also has `append(text)`. */
  function create(item) {
    const card = KINDS[item.kind](item);
    card.node.dataset.key = item.key;
    card.update(item);
    return card;
  }

  const KINDS = {
    user() {
      const text = el("p", { className: "text", dir: "auto" });
      const meta = el("p", { className: "meta" });
      const node = el("article", { className: "message user", "aria-label": "You" }, text, meta);
      function update(item) {
        setText(text, item.text);
        node.dataset.status = item.status;
        meta.replaceChildren(...(item.status === "failed" ? problem(item) : delivery(item.status)));
      }
      return { node, update };
    },

    assistant() {
      const words = document.createTextNode("");
      const text = el("div", { className: "text", dir: "auto" }, words);
      const ending = el("p", { className: "ending", hidden: true });
      // A live region would read out every token; the whole reply is announced once it is complete.
      const node = el("article", { className: "message assistant", "aria-label": "Assistant", "aria-live": "off" }, text, ending);
      function update(item) {
        if (words.data !== item.text) words.data = item.text;
        text.hidden = !item.text;
        node.dataset.status = item.status;
        node.setAttribute("aria-busy", String(item.status === "streaming"));
        setText(ending, endingText(item));
        ending.hidden = !ending.textContent;
      }
      return { node, update, append: (whole) => words.appendData(whole.slice(words.length)) };
    },

    tool_call(item) {
      const progress = el("span", { className: "progress" });
      const node = card("call", "Tool call", item.name, progress);
      node.append(fields(item.arguments));
      return {
        node,
        update({ status }) {
          node.dataset.status = status;
          setText(progress, status === "running" ? "running…" : "");
        },
      };
    },

    tool_result(item) {
      const failed = item.error !== null;
      const node = card(failed ? "result failed" : "result", failed ? "Tool failed" : "Tool result", item.name);
      node.append(...(failed ? [el("p", { className: "text", dir: "auto" }, sentence(item.error))] : json(item.result)));
      return { node, update() {} }; // a result never changes
    },

    notice(item) {
      const text = el("p", { className: "text", dir: "auto" }, Protocol.errorMeaning(item.error).text);
      return { node: el("div", { className: "notice" }, text), update() {} };
    },

    thinking() {
      const dots = el("span", { className: "dots", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
      return { node: el("p", { className: "thinking", "aria-live": "off" }, dots, "Thinking"), update() {} };
    },
  };

  function delivery(status) {
    if (status === "saved") return ["Saved"];
    if (status === "sent") return ["Sent"];
    // Which of the two is shown depends on the connection, which the style sheet knows.
    return [el("span", { className: "when-online" }, "Sending…"), el("span", { className: "when-offline" }, "Waiting for the connection")];
  }

  function problem({ messageId, error }) {
    const { text, remedy } = Protocol.errorMeaning(error);
    const button = (action, label) => el("button", { type: "button", className: "link", "data-action": action, "data-id": messageId }, label);
    const again = remedy === "again" ? [button("again", "Send again")] : [];
    const remedies = el("span", { className: "remedies" }, ...again, button("edit", "Edit"));
    return [el("span", {}, text), remedies];
  }

  function endingText({ status, text }) {
    if (status === "stopped") return text ? "Stopped" : "Stopped before a reply";
    if (status === "interrupted") return text ? "Interrupted: this reply is not complete" : "Interrupted before a reply";
    if (status === "length") return "Cut off: the reply reached its length limit";
    if (status === "cut") return "Cut off by the assistant's provider";
    return status === "done" && !text ? "The reply was empty" : "";
  }

  function card(kind, title, name, ...more) {
    const head = el("header", {}, el("span", { className: "title" }, title), el("code", {}, name), ...more);
    return el("section", { className: `card ${kind}`, "aria-label": `${title}: ${name}` }, head);
  }

  function fields(args) {
    if (args === null || typeof args !== "object") return el("p", { className: "text", dir: "auto" }, String(args));
    const entries = Object.entries(args);
    if (!entries.length) return el("p", { className: "none" }, "No arguments");
    const value = (given) => (typeof given === "string" ? given : pretty(given));
    return el("dl", {}, ...entries.flatMap(([name, given]) => [el("dt", {}, name), el("dd", { dir: "auto" }, value(given))]));
  }

  function json(result) {
    const text = typeof result === "string" ? result : pretty(result);
    const lines = text.split("\n").length;
    const pre = el("pre", { dir: "auto" }, text);
    if (lines <= CLIP_LINES && text.length <= 2000) return [pre];
    pre.className = "clipped";
    const label = lines > CLIP_LINES ? `Show all ${lines} lines` : "Show all";
    return [pre, el("button", { type: "button", className: "link", "data-action": "unclip", "data-label": label, "aria-expanded": "false" }, label)];
  }

  /** JSON indented by two, with short objects and lists on one line, as a person would write it. */
  function pretty(value, indent = "") {
    const flat = inline(value);
    if (value === null || typeof value !== "object" || flat.length + indent.length <= NARROW) return flat;
    const inner = `${indent}  `;
    const [open, close] = Array.isArray(value) ? "[]" : "{}";
    const lines = Array.isArray(value)
      ? value.map((each) => inner + pretty(each, inner))
      : Object.entries(value).map(([name, each]) => `${inner}${JSON.stringify(name)}: ${pretty(each, inner)}`);
    return `${open}\n${lines.join(",\n")}\n${indent}${close}`;
  }

  function inline(value) {
    if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
    if (Array.isArray(value)) return `[${value.map(inline).join(", ")}]`;
    const entries = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${inline(each)}`);
    return entries.length ? `{ ${entries.join(", ")} }` : "{}";
  }

  function sentence(text) {
    const whole = text.charAt(0).toUpperCase() + text.slice(1);
    return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
  }

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  return { create, pretty };
})();
