/**
 * Markdown's blocks: which lines are a heading, a list, a table, code. Line by line, no line is looked at more often
 * than it is nested deep; anything that is not closed goes on to the end of the text.
 */

/**
 * @typedef {{kind: "paragraph", from: number, to: number, lines: string[]}
 *   | {kind: "heading", from: number, to: number, level: number, text: string}
 *   | {kind: "rule", from: number, to: number}
 *   | {kind: "code", from: number, to: number, language: string, lines: string[]}
 *   | {kind: "maths", from: number, to: number, lines: string[]}
 *   | {kind: "quote", from: number, to: number, lines: string[]}
 *   | {kind: "list", from: number, to: number, start: number | null, items: string[][]}
 *   | {kind: "table", from: number, to: number, align: string[], rows: string[][]}} Block
 *   `from` is its first line, `to` the line after its last.
 */

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^\s`]{0,40})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const MATHS = /^\s*(\$\$|\\\[)/;
const CELL = /^:?-+:?$/;
const MOST_COLUMNS = 100;
const LONGEST_TESTED = 1000;
const LONGEST_MATHS = 200;

/** @param {string} text @returns {string[]} */
export function toLines(text) {
  return text.split(/\r\n|\n|\r/).map((line) => (line.includes("\t") ? line.replace(/^[ \t]+/, tabs) : line));
}

/** @param {string} space */
const tabs = (space) => space.replace(/\t/g, "    ");

/** @param {string[]} lines @returns {Block[]} */
export function parseBlocks(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = READERS.reduce((found, read) => found ?? read(lines, at), null) ?? paragraph(lines, at);
    blocks.push({ ...block, from: at });
    at = block.to;
  }
  return blocks;
}

const READERS = [code, heading, rule, quote, list, table, maths];

/** Long lines are no markers; asking the patterns about them only takes time. */
function match(pattern, line) {
  return line.length > LONGEST_TESTED ? null : pattern.exec(line);
}

function code(lines, at) {
  const open = match(FENCE, lines[at]);
  if (!open) return null;
  const [, indent, fence, language] = open;
  const content = [];
  for (let to = at + 1; to < lines.length; to++) {
    const line = lines[to].trim();
    if (line.length >= fence.length && line.startsWith(fence) && line === fence[0].repeat(line.length)) {
      return { kind: "code", to: to + 1, language, lines: content };
    }
    content.push(unindent(lines[to], indent.length));
  }
  return { kind: "code", to: lines.length, language, lines: content };
}

function heading(lines, at) {
  const found = match(HEADING, lines[at]);
  if (!found) return null;
  const text = (found[2] ?? "").trimEnd().replace(/(^|[ \t])#+$/, "");
  return { kind: "heading", to: at + 1, level: found[1].length, text: text.trim() };
}

function rule(lines, at) {
  return match(RULE, lines[at]) && { kind: "rule", to: at + 1 };
}

function quote(lines, at) {
  if (!QUOTE.test(lines[at])) return null;
  const content = [];
  let to = at;
  const carriesOn = () => lines[to].trim() && content.at(-1).trim() && !begins(lines, to);
  while (to < lines.length && (QUOTE.test(lines[to]) || carriesOn())) {
    content.push(lines[to].replace(QUOTE, ""));
    to += 1;
  }
  return { kind: "quote", to, lines: content };
}

function maths(lines, at) {
  const open = match(MATHS, lines[at]);
  if (!open) return null;
  const closer = open[1] === "$$" ? "$$" : "\\]";
  if (lines[at].indexOf(closer, open[0].length) >= 0) return null; // on one line: a paragraph's business
  const length = lines.slice(at + 1, at + LONGEST_MATHS).findIndex((line) => line.includes(closer)) + 2;
  return length < 2 ? null : { kind: "maths", to: at + length, lines: lines.slice(at, at + length) };
}

function list(lines, at) {
  const first = marker(lines[at]);
  if (!first) return null;
  const items = [];
  let to = at;
  for (let next = first; next?.type === first.type && next.indent < first.indent + 2; next = marker(lines[to] ?? "")) {
    const item = readItem(lines, to, next);
    items.push(item.lines);
    to = item.to;
    if (to < lines.length && match(RULE, lines[to])) break;
  }
  return { kind: "list", to: lastFilled(lines, to), start: first.number, items };
}

/** @returns {{type: string, indent: number, width: number, number: number | null} | null} */
function marker(line) {
  const found = MARKER.exec(line);
  if (!found) return null;
  const [whole, indent, sign, space] = found;
  const number = /\d/.test(sign) ? parseInt(sign, 10) : null;
  const width = space.length > 4 || space.length === 0 ? indent.length + sign.length + 1 : whole.length;
  return { type: sign.at(-1), indent: indent.length, width, number };
}

/** What belongs to an item: lines indented under it, and what carries on its last paragraph. */
function readItem(lines, at, { indent, width }) {
  const content = [lines[at].slice(width)];
  const least = Math.min(width, indent + 2); // models often indent by two under "1."
  let to = at + 1;
  for (; to < lines.length; to++) {
    const blank = !lines[to].trim();
    const inside = blank || indentation(lines[to]) >= least;
    const carriesOn = !inside && content.at(-1).trim() !== "" && !begins(lines, to);
    if (!inside && !carriesOn) break;
    content.push(unindent(lines[to], width));
  }
  while (content.length && !content.at(-1).trim()) content.pop();
  return { lines: content, to };
}

function table(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|")) return null;
  const rules = cells(lines[at + 1]);
  const head = cells(lines[at]);
  if (rules.length !== head.length || rules.length > MOST_COLUMNS || !rules.every((cell) => CELL.test(cell))) return null;
  const rows = [head];
  let to = at + 2;
  while (to < lines.length && lines[to].trim() && (lines[to].includes("|") || !begins(lines, to))) {
    rows.push(cells(lines[to]).slice(0, head.length));
    to += 1;
  }
  return { kind: "table", to, align: rules.map(alignment), rows };
}

/** The cells of a table's row; a pipe after a backslash is a character. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "");
  const found = [""];
  for (const part of inner.split(/(\\\||\|)/)) {
    if (part === "|") found.push("");
    else found[found.length - 1] += part === "\\|" ? "|" : part;
  }
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim());
}

function alignment(cell) {
  if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "end";
  return "start";
}

function paragraph(lines, at) {
  let to = at + 1;
  while (to < lines.length && lines[to].trim() && !begins(lines, to)) to += 1;
  return { kind: "paragraph", to, lines: lines.slice(at, to).map((line) => line.trim()) };
}

/** Whether another block than a paragraph begins here. A year and a full stop are the end of a sentence. */
function begins(lines, at) {
  const line = lines[at];
  if (QUOTE.test(line) || /^ {0,3}([-*+]|\d{1,3}[.)]) +\S/.test(line)) return true;
  if ([FENCE, HEADING, RULE].some((pattern) => match(pattern, line))) return true;
  return isTable(lines, at) || maths(lines, at) !== null;
}

function isTable(lines, at) {
  return lines[at].includes("|") && /^[\s|:-]{0,1000}$/.test(lines[at + 1] ?? "x") && table(lines, at) !== null;
}

function indentation(line) {
  return line.length - line.trimStart().length;
}

function unindent(line, most) {
  return line.slice(Math.min(most, indentation(line)));
}

/** Blank lines after a list belong to nobody. */
function lastFilled(lines, to) {
  let end = to;
  while (end > 0 && !lines[end - 1].trim()) end -= 1;
  return end;
}
