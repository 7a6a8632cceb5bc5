/**
 * Markdown to nodes. This is the sanitiser as well: only the elements named here are ever made, everything else in the
 * text, HTML too, is text. Pictures are links, because a picture that loads by itself tells somebody that it was read.
 */

import { parseBlocks, toLines } from "./blocks.js";
import { copy, el } from "./dom.js";
import { inline } from "./inline.js";

/** @typedef {import("./blocks.js").Block} Block */
/** @typedef {{copy: string, copied: string, code: string, table: string}} Names what buttons and regions are called */

const DEEPEST = 12;
const COPIED_FOR = 2000;

/** @param {string} text @param {Names} names @returns {Node[]} */
export function render(text, names) {
  return renderLines(toLines(text), names, 0);
}

/** @returns {Node[]} */
function renderLines(lines, names, depth) {
  if (depth > DEEPEST) return [paragraph({ lines })];
  return parseBlocks(lines).map((block) => renderBlock(block, names, depth));
}

/** @param {Block} block @returns {Node} */
function renderBlock(block, names, depth) {
  return MAKERS[block.kind](block, names, depth);
}

const MAKERS = {
  paragraph,
  heading: ({ level, text }) => el(`h${Math.min(level + 2, 6)}`, {}, inline(text)),
  rule: () => el("hr"),
  maths: ({ lines }) => el("div", { class: "maths", text: lines.join("\n") }),
  quote: ({ lines }, names, depth) => el("blockquote", {}, ...renderLines(lines, names, depth + 1)),
  code,
  list,
  table,
};

function paragraph({ lines }) {
  return el("p", {}, inline(lines.join("\n")));
}

function code({ language, lines }, names) {
  const button = el("button", { type: "button", class: "copy", text: names.copy });
  const bar = el("div", { class: "bar" }, el("span", { text: language }), button);
  const content = el("code", { text: lines.join("\n") });
  return el("div", { class: "code" }, bar, el("pre", { tabindex: "0", role: "group", "aria-label": names.code }, content));
}

function list({ start, items }, names, depth) {
  const children = items.map((lines) => el("li", {}, ...tight(renderLines(lines, names, depth + 1))));
  return start === null ? el("ul", {}, ...children) : el("ol", { start: String(start) }, ...children);
}

/** An item's first paragraph goes straight into the item. */
function tight(nodes) {
  if (nodes[0]?.nodeName !== "P") return nodes;
  return [...nodes[0].childNodes, ...nodes.slice(1)];
}

function table({ align, rows }, names) {
  const [head, ...body] = rows.map((row, index) =>
    el("tr", {}, ...row.map((text, column) => cell(index === 0 ? "th" : "td", align[column], text))),
  );
  const whole = el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
  return el("div", { class: "table", tabindex: "0", role: "group", "aria-label": names.table }, whole);
}

function cell(tag, align, text) {
  return el(tag, { class: align, scope: tag === "th" && "col" }, inline(text.replace(/<br ?\/?>/gi, "\n")));
}

/**
 * Markdown that grows. Blocks that can no longer change are never touched again; the last one is compared with what is
 * there, and only differences change, so a selection and the place in a long block stay.
 * @param {HTMLElement} container
 * @param {Names} names
 */
export function liveMarkdown(container, names) {
  let settled = 0; // characters of the text whose blocks are final
  let live = /** @type {ChildNode[]} */ ([]);

  /** @param {string} text all of the text so far, of which what was there before is the beginning */
  function update(text) {
    const tail = text.slice(settled);
    const lines = toLines(tail);
    const blocks = parseBlocks(lines);
    const fresh = blocks.map((block) => renderBlock(block, names, 0));
    live = reconcile(container, live, fresh);
    const keep = firstUnsettled(blocks, lines.length);
    if (keep > 0) {
      settled += lengthOfLines(tail, blocks[keep].from);
      live = live.slice(keep);
    }
  }

  /** Everything once more, for what only the end of the text could tell. @param {string} text */
  function finish(text) {
    settled = 0;
    live = [...container.childNodes];
    update(text);
  }
  return { update, finish };
}

/** A block is final when the one after it has two whole lines or one after it again; the last line may still grow. */
function firstUnsettled(blocks, lineCount) {
  for (let index = blocks.length - 1; index > 0; index--) {
    const whole = Math.min(blocks[index].to, lineCount - 1) - blocks[index].from;
    if (whole >= 2 || (index < blocks.length - 1 && whole >= 1)) return index;
  }
  return 0;
}

/** How many characters the first `count` lines have, with their ends. */
function lengthOfLines(text, count) {
  const end = /\r\n|\n|\r/g;
  for (let line = 0; line < count; line++) end.exec(text);
  return end.lastIndex;
}

/** @returns {ChildNode[]} the nodes now in the container in place of `old` */
function reconcile(container, old, fresh) {
  const nodes = fresh.map((node, index) => {
    if (index < old.length) return morph(old[index], node);
    container.append(node);
    return node;
  });
  for (const node of old.slice(fresh.length)) node.remove();
  return nodes;
}

/** Makes `old` what `fresh` is, with as few changes as it takes. */
function morph(old, fresh) {
  if (!alike(old, fresh)) {
    old.replaceWith(fresh);
    return fresh;
  }
  if (old.nodeType === Node.TEXT_NODE) changeText(old, fresh.data);
  else reconcile(old, [...old.childNodes], [...fresh.childNodes]);
  return old;
}

function changeText(old, text) {
  if (old.data === text) return;
  if (text.startsWith(old.data)) old.appendData(text.slice(old.length));
  else old.data = text;
}

function alike(old, fresh) {
  if (old.nodeName !== fresh.nodeName) return false;
  if (old.nodeType === Node.TEXT_NODE) return true;
  const names = fresh.getAttributeNames();
  return (
    names.length === old.getAttributeNames().length &&
    names.every((name) => old.getAttribute(name) === fresh.getAttribute(name))
  );
}

/**
 * Lets the copy buttons of all code blocks inside `container` work, now and later.
 * @param {HTMLElement} container
 * @param {() => Names} names
 */
export function copyButtons(container, names) {
  container.addEventListener("click", async (event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest?.("button.copy");
    const content = button?.closest(".code")?.querySelector("code");
    if (!content || !(await copy(content.textContent ?? ""))) return;
    button.textContent = names().copied;
    setTimeout(() => (button.textContent = names().copy), COPIED_FOR);
  });
}
