/** The conversation on the page: a message is an article, the one being written grows without touching the others. */

import { copy, el, icon, iconButton } from "./dom.js";
import { copyButtons, liveMarkdown } from "./markdown.js";
import { getPicture } from "./pictures.js";
import { number, plural, t } from "./texts.js";

/**
 * @typedef {import("./store.js").Conversation} Conversation
 * @typedef {import("./store.js").Message} Message
 * @typedef {import("./answers.js").Running} Running
 * @typedef {{again: () => void, edit: (message: Message, text: string) => void, remove: (message: Message) => void}} Actions
 * @typedef {{article: HTMLElement, body: HTMLElement, foot: HTMLElement, live: ReturnType<typeof liveMarkdown>}} Shown
 */

const NEAR = 48; // pixels from the end that still count as the end
const SHARE = 4; // drawing takes at most one part in five of the time

const names = () => ({ copy: t("copy"), copied: t("copied"), code: t("code"), table: t("table") });

/**
 * @param {{scroller: HTMLElement, list: HTMLElement, toBottom: HTMLElement, announcer: HTMLElement, actions: Actions,
 *   context: () => number | null}} page
 */
export function createMessages({ scroller, list, toBottom, announcer, actions, context }) {
  /** @type {Map<Message, Shown>} */
  const shown = new Map();
  let current = /** @type {Conversation | null} */ (null);
  let running = /** @type {Running | undefined} */ (undefined);
  let following = true;
  let closeEditor = () => {};
  const draw = paced(() => running && grow(running));
  copyButtons(list, names);
  scroller.addEventListener("scroll", () => setFollowing(distance() < NEAR));
  toBottom.addEventListener("click", () => follow(true));
  new ResizeObserver(() => following && follow(true)).observe(scroller);

  const distance = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;

  function setFollowing(value) {
    following = value;
    toBottom.hidden = value;
  }

  function follow(always = false) {
    if (always) setFollowing(true);
    if (following) scroller.scrollTop = scroller.scrollHeight;
  }

  /** @param {Conversation} conversation @param {Running | undefined} entry its answer being written */
  function show(conversation, entry) {
    current = conversation;
    running = entry;
    closeEditor = () => {};
    shown.clear();
    list.replaceChildren(...beginning(conversation));
    for (const message of conversation.messages) add(message);
    feet();
    follow(true);
  }

  /** @param {Message} message */
  function add(message) {
    const body = el("div", { class: "body", dir: "auto" });
    const foot = el("div", { class: "foot" });
    const heading = el("h2", { class: "unseen", text: message.role === "user" ? t("you") : t("appName") });
    const article = el("article", { class: `message ${message.role}` }, heading, body, foot);
    const live = liveMarkdown(body, names());
    shown.set(message, { article, body, foot, live });
    if (message.role === "assistant") live.finish(message.text);
    else body.append(pictures(message), el("p", { class: "plain", text: message.text }));
    list.append(article);
  }

  /** The answer being written has grown. @param {Running} entry */
  function grow({ message, wait, began }) {
    const parts = shown.get(message);
    if (!parts) return;
    parts.live.update(message.text);
    const waited = Math.round((performance.now() - began) / 1000);
    const text = waited < 3 ? t("thinking") : t("thinkingFor", { n: number(waited) });
    if (wait || !message.text) setNote(parts.foot, wait ? t("waiting", { n: number(wait) }) : text);
    else parts.foot.replaceChildren();
    follow();
  }

  /** @param {Running} entry */
  function begin(entry) {
    closeEditor();
    running = entry;
    list.querySelector(".greeting")?.remove();
    for (const message of entry.conversation.messages) if (!shown.has(message)) add(message);
    shown.get(entry.message)?.article.setAttribute("aria-busy", "true");
    feet();
    grow(entry);
    follow(true);
    announce(t("answerStarted"));
  }

  /** @param {Running} entry */
  function end({ message }) {
    running = undefined;
    const parts = shown.get(message);
    parts?.live.finish(message.text);
    parts?.article.removeAttribute("aria-busy");
    feet();
    follow();
    if (message.text) announce(t("answerDone", { text: spoken(parts?.body) }));
  }

  /** A screen reader hears an answer once, when it is whole. */
  function announce(text) {
    announcer.append(el("p", { text }));
    while (announcer.children.length > 2) announcer.firstChild?.remove();
  }

  /** What stands under the messages depends on which of them is the last. */
  function feet() {
    const messages = current?.messages ?? [];
    const lastAsked = messages.findLast((message) => message.role === "user");
    for (const [message, { foot }] of shown) {
      const last = !running && (message === messages.at(-1) || message === lastAsked);
      if (message !== running?.message) foot.replaceChildren(...below(message, last));
    }
  }

  /** @param {Message} message @param {boolean} last @returns {Node[]} */
  function below(message, last) {
    const buttons = [iconButton("copy", t("copyMessage"), (event) => copied(event, message.text))];
    if (last && message.role === "user") buttons.push(iconButton("edit", t("edit"), () => edit(message)));
    if (last && message.role === "assistant") buttons.push(iconButton("again", t("regenerate"), actions.again));
    if (last) buttons.push(iconButton("delete", t("deleteMessage"), () => actions.remove(message)));
    const row = el("div", { class: last ? "actions last" : "actions" }, ...buttons);
    return [problem(message, last && actions.again), note(message, context()), row].filter((node) => node !== null);
  }

  /** @param {Message} message */
  function edit(message) {
    const { body, foot } = /** @type {Shown} */ (shown.get(message));
    const before = [[...body.childNodes], [...foot.childNodes]];
    closeEditor = () => {
      closeEditor = () => {};
      body.replaceChildren(...before[0]);
      foot.replaceChildren(...before[1]);
    };
    const cancel = () => {
      closeEditor();
      foot.querySelector("button")?.focus();
    };
    editor(message, { body, foot, cancel, send: (text) => actions.edit(message, text) });
  }

  return { show, begin, end, progress: draw, tick: () => running && draw() };
}

/** An answer as it is read out: without the names of buttons. @param {HTMLElement | undefined} body */
function spoken(body) {
  const blocks = /** @type {HTMLElement[]} */ ([...(body?.children ?? [])]);
  return blocks.map((block) => (block.querySelector(":scope > pre") ?? block).textContent).join("\n");
}

/** Calls `draw` for the next frame, but leaves most of the time to everything else however long drawing takes. */
function paced(draw) {
  let wanted = false;
  let cost = 0;
  const now = () => {
    wanted = false;
    const began = performance.now();
    draw();
    cost = performance.now() - began;
  };
  return () => {
    if (wanted) return;
    wanted = true;
    setTimeout(() => requestAnimationFrame(now), cost * SHARE);
  };
}

/** @param {Conversation} conversation @returns {Node[]} */
function beginning({ system, messages }) {
  const greeting = el("div", { class: "greeting" }, el("p", { class: "big", text: t("greeting") }), el("p", { text: t("greetingText") }));
  const rules = el("details", { class: "system" }, el("summary", { text: t("system") }), el("p", { text: system }));
  return [...(system.trim() ? [rules] : []), ...(messages.length ? [] : [greeting])];
}

/** @param {Message} message */
function pictures(message) {
  const row = el("div", { class: "pictures" });
  for (const { id, name } of message.pictures ?? []) {
    const place = el("span", { class: "gone", text: t("picture") });
    row.append(place);
    getPicture(id).then((src) => {
      if (src) place.replaceWith(el("img", { src, alt: `${t("picture")}: ${name}` }));
      else place.textContent = t("pictureGone");
    });
  }
  return row;
}

/** Keeps the element, so that its animation goes on. @param {HTMLElement} foot @param {string} text */
function setNote(foot, text) {
  const there = foot.querySelector(".waiting");
  if (there) there.textContent = text;
  else foot.replaceChildren(el("p", { class: "note waiting", text }));
}

/** @param {Message} message @param {number | null} context @returns {Node | null} */
function note({ state, speed }, context) {
  const texts = { stopped: t("stopped"), running: t("interrupted"), length: t("tooLong") };
  const parts = [texts[state ?? ""], speed && speedText(speed, context)].filter(Boolean);
  return parts.length ? el("p", { class: "note", text: parts.join(" ") }) : null;
}

/** @param {import("./store.js").Speed} speed @param {number | null} context */
function speedText({ tokens, total, seconds, first }, context) {
  const parts = [plural("tokens", tokens)];
  if (tokens > 1 && seconds > 0) parts.push(t("rate", { n: number((tokens - 1) / seconds, 1) })); // the first came before
  parts.push(t("firstAfter", { n: number(first, 1) }));
  if (context) parts.push(t("contextUsed", { n: number(total), of: number(context) }));
  return parts.join(" · ");
}

/** @param {Message} message @param {false | (() => void)} again @returns {Node | null} */
function problem({ problem: wrong }, again) {
  if (!wrong) return null;
  const box = el("div", { class: "problem", role: "alert" }, el("p", { text: t(`problem_${wrong.kind}`) }));
  if (wrong.message) box.append(el("p", { class: "detail", text: wrong.message }));
  if (again) box.append(el("button", { type: "button", class: "soft", text: t("retry"), click: again }));
  return box;
}

/** @param {Event} event @param {string} text */
async function copied(event, text) {
  const button = /** @type {HTMLElement} */ (event.currentTarget);
  if (!(await copy(text))) return;
  button.replaceChildren(icon("done"));
  setTimeout(() => button.replaceChildren(icon("copy")), 2000);
}

/** @param {Message} message */
function editor(message, { body, foot, cancel, send }) {
  const area = el("textarea", { class: "editor", "aria-label": t("editing"), rows: "3" });
  area.value = message.text;
  const accept = () => (area.value.trim() || message.pictures?.length) && send(area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const enter = event.key === "Enter" && !event.shiftKey;
    if (!enter && event.key !== "Escape") return;
    event.preventDefault();
    if (enter) accept();
    else cancel();
  });
  body.replaceChildren(pictures(message), area);
  const buttons = [
    el("button", { type: "button", class: "soft", text: t("cancel"), click: cancel }),
    el("button", { type: "button", class: "strong", text: t("sendAgain"), click: accept }),
  ];
  foot.replaceChildren(el("div", { class: "choices" }, ...buttons));
  area.focus();
}
