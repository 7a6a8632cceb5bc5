/** Builds DOM nodes. Text is always a text node, so that nothing a user or a model wrote becomes markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element. A property that is a function listens for the event of its name, `text` is the content, false and
 * undefined are left out, everything else is an attribute.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "text") node.textContent = value;
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/**
 * One of the drawings in index.html. Always decoration: the button around it has the name.
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * @param {string} drawing
 * @param {string} name what it does, for the tooltip and the screen reader
 * @param {(event: Event) => void} click
 */
export function iconButton(drawing, name, click) {
  return el("button", { type: "button", class: "quiet", title: name, "aria-label": name, click }, icon(drawing));
}

/**
 * The element of index.html with this id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  return document.getElementById(id);
}

/** @param {string} text @returns {Promise<boolean>} whether the clipboard has it */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text); // the clipboard is only for https and this machine; a page on a home network has neither
  }
}

/** @param {string} text */
function copySelected(text) {
  const before = document.activeElement;
  const area = el("textarea", { class: "unseen", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus?.();
  return done;
}
