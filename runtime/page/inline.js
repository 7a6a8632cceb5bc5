/**
 * Markdown within a line: emphasis, code, links, breaks. One pass from left to right in time proportional to the
 * text, whatever the text; the elements made here are the only ones there can be.
 */

import { el } from "./dom.js";

const SPECIAL = /[\\`*_~[!<$\n]|https?:\/\//g;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TEXT = String.raw`((?:\\.|[^\[\]\\]|\[[^\[\]]{0,200}\]){1,1000})`;
const ADDRESS = String.raw`(?:<([^<>\n]{0,2000})>|((?:[^\s()<>\\]|\\.|\([^\s()<>]{0,500}\)){0,2000}))`;
const LINK = new RegExp(String.raw`!?\[${TEXT}\]\(\s{0,9}${ADDRESS}(?:\s{1,9}"[^"\n]{0,500}")?\s{0,9}\)`, "y");
const PICTURE_WITHOUT_NAME = new RegExp(String.raw`!\[()\]\(\s{0,9}${ADDRESS}\s{0,9}\)`, "y");
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BARE = /https?:\/\/[^\s<>"`*|\\]{1,2000}/y;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const DEEPEST = 16;
const ELEMENTS = { "*": ["em", "strong"], _: ["em", "strong"], "~": ["", "del"] };

/**
 * @typedef {{mark: string, length: number, opening: boolean, nodes: Node[]}} Frame a run of marks that waits for its end
 * @typedef {{text: string, links: boolean, frames: Frame[], runs: Map<number, number[]> | null, missing: Set<string>}} Scan
 */

/**
 * @param {string} text
 * @param {boolean} [links] false inside a link
 * @returns {DocumentFragment}
 */
export function inline(text, links = true) {
  const root = { mark: "", length: 0, opening: false, nodes: [] };
  const scan = { text, links, frames: [root], runs: null, missing: new Set() };
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    if (next > at) literal(scan, text.slice(at, next));
    at = next < text.length ? special(scan, next) : next;
  }
  while (scan.frames.length > 1) giveUp(scan);
  const fragment = document.createDocumentFragment();
  for (const node of root.nodes) fragment.append(node);
  fragment.normalize();
  return fragment;
}

/**
 * The address if it is one that may be followed: http, https or mail, and nothing relative.
 * @param {string} text
 * @returns {string | null}
 */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const RULES = { "\\": escape, "`": code, "*": marks, _: marks, "~": marks, "[": link, "!": link, "<": angle, $: maths };

/** @param {Scan} scan @param {number} at @returns {number} where to go on */
function special(scan, at) {
  const char = scan.text[at];
  if (char === "\n") return add(scan, el("br"), at + 1);
  const after = (RULES[char] ?? bare)(scan, at);
  if (after > at) return after;
  literal(scan, char);
  return at + 1;
}

/** @param {Scan} scan @param {string} text */
function literal(scan, text) {
  scan.frames.at(-1).nodes.push(document.createTextNode(text));
}

/** @param {Scan} scan @param {Node} node @param {number} after */
function add(scan, node, after) {
  scan.frames.at(-1).nodes.push(node);
  return after;
}

function escape(scan, at) {
  const opener = scan.text.slice(at, at + 2);
  if (opener === "\\(" || opener === "\\[") {
    const after = untouched(scan, at, opener === "\\(" ? "\\)" : "\\]");
    if (after > at) return after;
  }
  if (scan.text[at + 1] === "\n") return add(scan, el("br"), at + 2);
  ESCAPED.lastIndex = at;
  const found = ESCAPED.exec(scan.text);
  if (!found) return at;
  literal(scan, found[1]);
  return at + 2;
}

/** Formulas stay as they were written; their stars and underscores are no emphasis. */
function maths(scan, at) {
  if (scan.text.startsWith("$$", at)) return untouched(scan, at, "$$");
  const end = scan.text.indexOf("$", at + 1);
  const inner = end < 0 ? "" : scan.text.slice(at + 1, end);
  const money = /^\s|\s$|\n\s*\n/.test(inner) || /\d/.test(scan.text[end + 1] ?? "");
  if (!inner || money) return at;
  return add(scan, el("span", { class: "maths", text: scan.text.slice(at, end + 1) }), end + 1);
}

function untouched(scan, at, closer) {
  if (scan.missing.has(closer)) return at;
  const end = scan.text.indexOf(closer, at + 2);
  if (end < 0) {
    scan.missing.add(closer);
    return at;
  }
  const after = end + 2;
  return add(scan, el("span", { class: "maths", text: scan.text.slice(at, after) }), after);
}

function code(scan, at) {
  scan.runs ??= backticks(scan.text);
  let start = at;
  while (scan.text[start] === "`") start += 1;
  const closers = scan.runs.get(start - at) ?? [];
  while (closers.length && closers.at(-1) < start) closers.pop();
  if (!closers.length) {
    literal(scan, scan.text.slice(at, start));
    return start;
  }
  const end = closers.pop();
  const inner = scan.text.slice(start, end).replace(/\n/g, " ");
  const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() !== "";
  return add(scan, el("code", { text: padded ? inner.slice(1, -1) : inner }), end + start - at);
}

/** Where runs of backticks begin, by their length, the first one last. */
function backticks(text) {
  const runs = new Map();
  for (const run of text.matchAll(/`+/g)) {
    if (!runs.has(run[0].length)) runs.set(run[0].length, []);
    runs.get(run[0].length).push(run.index);
  }
  for (const starts of runs.values()) starts.reverse();
  return runs;
}

function link(scan, at) {
  LINK.lastIndex = PICTURE_WITHOUT_NAME.lastIndex = at;
  const found = LINK.exec(scan.text) ?? PICTURE_WITHOUT_NAME.exec(scan.text);
  if (!found) return at;
  const after = at + found[0].length;
  const address = safeAddress((found[2] ?? found[3]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
  if (!address || !scan.links) {
    literal(scan, found[0]);
    return after;
  }
  const name = found[1] ? inline(found[1], false) : document.createTextNode(address);
  return add(scan, anchor(address, name), after);
}

function angle(scan, at) {
  ANGLE.lastIndex = at;
  const found = ANGLE.exec(scan.text);
  const address = found && scan.links && safeAddress(found[1]);
  return address ? add(scan, anchor(address, document.createTextNode(found[1])), at + found[0].length) : at;
}

function bare(scan, at) {
  BARE.lastIndex = at;
  const found = BARE.exec(scan.text)?.[0] ?? "";
  let text = found.replace(/[.,;:!?'\]_~]{1,2000}$/, "");
  if (text.endsWith(")") && !text.includes("(")) text = text.replace(/\){1,2000}.*$/, "");
  const address = scan.links && safeAddress(text);
  return address ? add(scan, anchor(address, document.createTextNode(text)), at + text.length) : at;
}

/** @param {string} address @param {Node} name */
function anchor(address, name) {
  return el("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer" }, name);
}

function marks(scan, at) {
  const { text } = scan;
  const mark = text[at];
  let end = at;
  while (text[end] === mark) end += 1;
  const run = { mark, length: end - at, opening: false, nodes: [] };
  const [opens, closes] = flanks(mark, text[at - 1] ?? " ", text[end] ?? " ");
  if (run.length > 3 || (mark === "~" && run.length !== 2)) literal(scan, text.slice(at, end));
  else finishMarks(scan, run, opens, closes);
  return end;
}

/** Whether a run of marks may open and close, by the characters beside it (CommonMark's flanking runs). */
function flanks(mark, before, after) {
  const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
  const [pointBefore, pointAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
  const left = !spaceAfter && (!pointAfter || spaceBefore || pointBefore);
  const right = !spaceBefore && (!pointBefore || spaceAfter || pointAfter);
  if (mark !== "_") return [left, right];
  return [left && (!right || pointBefore), right && (!left || pointAfter)];
}

/** @param {Scan} scan @param {Frame} run */
function finishMarks(scan, run, opens, closes) {
  while (closes && run.length > 0 && scan.frames.some((frame) => frame.mark === run.mark)) {
    while (scan.frames.at(-1).mark !== run.mark) giveUp(scan);
    wrap(scan, run);
  }
  if (run.length === 0) return;
  if (opens && scan.frames.length < DEEPEST) scan.frames.push(run);
  else literal(scan, run.mark.repeat(run.length));
}

/** The innermost frame has its end: as many marks as both sides have, two at most, become an element. */
function wrap(scan, run) {
  const frame = scan.frames.at(-1);
  const count = Math.min(frame.length, run.length, 2);
  const element = el(ELEMENTS[run.mark][count - 1] || "span");
  for (const node of frame.nodes) element.append(node);
  frame.length -= count;
  run.length -= count;
  frame.nodes = [element];
  if (frame.length === 0) {
    scan.frames.pop();
    scan.frames.at(-1).nodes.push(element);
  }
}

/** The innermost frame never ends: its marks are characters. */
function giveUp(scan) {
  const frame = scan.frames.pop();
  literal(scan, frame.mark.repeat(frame.length));
  for (const node of frame.nodes) scan.frames.at(-1).nodes.push(node);
}
