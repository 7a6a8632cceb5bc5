/** The list of conversations, and on a narrow screen the drawer it lies in. */

import { byId, el, iconButton } from "./dom.js";
import { t } from "./texts.js";

/** @typedef {import("./store.js").Conversation} Conversation */

const NARROW = "(max-width: 50rem)";

/** @param {{open: (id: string) => void, rename: (id: string) => void, remove: (id: string) => void}} actions */
export function createSidebar(actions) {
  const narrow = matchMedia(NARROW);

  /** @param {boolean} open */
  function toggle(open) {
    document.body.classList.toggle("menu", open);
    byId("open-menu").setAttribute("aria-expanded", String(open));
    byId("stage").inert = open && narrow.matches;
    if (!narrow.matches) return;
    byId(open ? "close-menu" : "open-menu").focus();
  }

  /** @returns {boolean} whether there was a drawer to close */
  function close() {
    const open = document.body.classList.contains("menu");
    if (open) toggle(false);
    return open;
  }

  /** @param {Conversation[]} conversations @param {string} current @param {Set<string>} running */
  function show(conversations, current, running) {
    const list = byId("conversations");
    const focused = document.activeElement?.closest("#conversations li");
    const button = [...(focused?.querySelectorAll("button") ?? [])].indexOf(document.activeElement);
    list.replaceChildren(...conversations.map((one) => item(one, one.id === current, running, actions)));
    const again = focused && [...list.children].find((one) => one.dataset.id === focused.dataset.id);
    again?.querySelectorAll("button")[button]?.focus();
  }

  byId("open-menu").addEventListener("click", () => toggle(true));
  byId("close-menu").addEventListener("click", () => toggle(false));
  byId("shade").addEventListener("click", () => toggle(false));
  narrow.addEventListener("change", close);
  return { show, close };
}

/** @param {Conversation} conversation */
function item({ id, title }, current, running, actions) {
  const name = title || t("untitled");
  const open = el("button", { type: "button", class: "open", "aria-current": current && "true", click: () => actions.open(id) });
  open.append(el("span", { class: "name", text: name, title: name }));
  if (running.has(id)) open.append(el("span", { class: "unseen", text: t("thinking") }));
  const rename = iconButton("edit", t("renameThis", { title: name }), () => actions.rename(id));
  const remove = iconButton("delete", t("deleteThis", { title: name }), () => actions.remove(id));
  return el("li", { class: running.has(id) && "running", "data-id": id }, open, rename, remove);
}
