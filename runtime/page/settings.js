/** The settings dialog: the system prompt of the conversation, and how answers are sampled. */

import { closeOutside } from "./dialogs.js";
import { byId, el } from "./dom.js";
import { number, t } from "./texts.js";

/** @typedef {{name: string, least: number, most: number, whole: boolean}} Parameter */

/** @type {Parameter[]} */
const PARAMETERS = [
  { name: "temperature", least: 0, most: 2, whole: false },
  { name: "top_p", least: 0, most: 1, whole: false },
  { name: "top_k", least: 0, most: 1000, whole: true },
  { name: "max_tokens", least: 1, most: 131072, whole: true },
  { name: "seed", least: 0, most: 4294967295, whole: true },
];

/**
 * What a person wrote as a number; a comma is a decimal sign.
 * @param {Parameter} parameter @param {string} text
 * @returns {number | undefined | null} undefined for an empty field, null for what is no such number
 */
export function parseNumber({ least, most, whole }, text) {
  const plain = text.trim().replace(",", ".");
  if (plain === "") return undefined;
  const value = /^\d+(\.\d*)?$|^\.\d+$/.test(plain) ? Number(plain) : NaN;
  return value >= least && value <= most && (!whole || Number.isInteger(value)) ? value : null;
}

/** The part of a request that the settings make. @param {Record<string, string>} settings */
export function sampling(settings) {
  const values = PARAMETERS.map((parameter) => [parameter.name, parseNumber(parameter, settings[parameter.name] ?? "")]);
  return Object.fromEntries(values.filter(([, value]) => typeof value === "number"));
}

/**
 * @param {{settings: Record<string, string>, save: () => void, system: () => string,
 *   setSystem: (text: string) => void}} page `system` is the current conversation's
 * @returns {{relabel: () => void}}
 */
export function createSettings({ settings, save, system, setSystem }) {
  const dialog = byId("settings");
  const fields = PARAMETERS.map((parameter) => createField(parameter, settings, save));
  byId("parameters").append(...fields.map((field) => field.node));
  byId("open-settings").addEventListener("click", () => {
    byId("system").value = system();
    byId("system-default").checked = system() !== "" && settings.system === system();
    for (const field of fields) field.show();
    dialog.showModal();
  });
  byId("close-settings").addEventListener("click", () => dialog.close());
  closeOutside(dialog);
  const setDefault = () => {
    settings.system = byId("system-default").checked ? byId("system").value : "";
    save();
  };
  byId("system").addEventListener("input", () => {
    setSystem(byId("system").value);
    if (byId("system-default").checked) setDefault();
  });
  byId("system-default").addEventListener("change", setDefault);
  byId("reset").addEventListener("click", () => {
    for (const { name } of PARAMETERS) delete settings[name];
    for (const field of fields) field.show();
    save();
  });
  return { relabel: () => fields.forEach((field) => field.relabel()) };
}

/** One parameter: name, what it does, and what is wrong with what was written. */
function createField(parameter, settings, save) {
  const { name, least, most, whole } = parameter;
  const ids = [`${name}-hint`, `${name}-wrong`];
  const label = el("label", { for: name });
  const hint = el("p", { id: ids[0], class: "hint" });
  const wrong = el("p", { id: ids[1], class: "wrong", role: "status" });
  const mode = whole ? "numeric" : "decimal";
  const input = el("input", { id: name, type: "text", inputmode: mode, autocomplete: "off", "aria-describedby": ids.join(" ") });

  function check() {
    const bad = parseNumber(parameter, input.value) === null;
    input.setAttribute("aria-invalid", String(bad));
    const limits = { min: number(least), max: number(most) };
    wrong.textContent = bad ? t(whole ? "badInteger" : "badNumber", limits) : "";
    return !bad;
  }

  function show() {
    input.value = settings[name] ?? "";
    check();
  }

  function relabel() {
    label.replaceChildren(t(name), el("code", { text: name }));
    hint.textContent = t(`${name}Hint`);
    check();
  }

  input.addEventListener("input", () => {
    if (!check()) return;
    settings[name] = input.value.trim();
    save();
  });
  relabel();
  return { node: el("div", { class: "field row" }, label, input, hint, wrong), show, relabel };
}
