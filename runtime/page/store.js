/** What the browser keeps: settings and conversations as JSON in localStorage, pictures in IndexedDB. */

/**
 * @typedef {{id: string, name: string}} Picture its data are `pictures.get(id)`
 * @typedef {{kind: string, message: string}} Problem
 * @typedef {{tokens: number, total: number, seconds: number, first: number}} Speed of an answer; `first` token after
 *   that many seconds, the others in `seconds`
 * @typedef {{role: "user" | "assistant", text: string, pictures?: Picture[], problem?: Problem, speed?: Speed,
 *   state?: "running" | "done" | "stopped" | "length" | "problem"}} Message
 * @typedef {{id: string, title: string, named: boolean, changed: number, system: string, messages: Message[]}}
 *   Conversation `named` if a person chose the title
 */

const PREFIX = "borealis:conversation:";
const SETTINGS = "borealis:settings";
const KEY = "borealis:key";
const OPEN = "borealis:open";
const DRAFT = "borealis:draft:";
const STATES = new Set([undefined, "running", "done", "stopped", "length", "problem"]);

/** @returns {string} never used before; its first part is the time */
export function newId() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return `${Date.now().toString(36)}-${[...random].map((number) => number.toString(36)).join("")}`;
}

/** @param {string} system @returns {Conversation} */
export function newConversation(system) {
  return { id: newId(), title: "", named: false, changed: Date.now(), system, messages: [] };
}

/** @returns {Conversation[]} all that can be read, the latest first */
export function loadConversations() {
  return attempt(() => Object.keys(localStorage), [])
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => loadConversation(key.slice(PREFIX.length)))
    .filter((conversation) => conversation !== null)
    .sort((one, other) => other.changed - one.changed);
}

/** @param {string} id @returns {Conversation | null} */
export function loadConversation(id) {
  const value = parsed(attempt(() => localStorage.getItem(PREFIX + id), null));
  return isConversation(value) && value.id === id ? value : null;
}

/** @param {Conversation} conversation @returns {boolean} false when there is no room; what was saved before stays */
export function saveConversation(conversation) {
  return write(PREFIX + conversation.id, JSON.stringify(conversation));
}

/** @param {string} id */
export function deleteConversation(id) {
  attempt(() => localStorage.removeItem(PREFIX + id), undefined);
  saveDraft(id, "");
}

/** @param {(id: string) => void} changed called when another tab saved or deleted a conversation */
export function watchOtherTabs(changed) {
  window.addEventListener("storage", ({ key }) => key?.startsWith(PREFIX) && changed(key.slice(PREFIX.length)));
}

/** @returns {Record<string, string>} */
export function loadSettings() {
  const value = parsed(attempt(() => localStorage.getItem(SETTINGS), null));
  const entries = Object.entries(value ?? {}).filter(([, setting]) => typeof setting === "string");
  return Object.fromEntries(entries);
}

/** @param {Record<string, string>} settings */
export function saveSettings(settings) {
  return write(SETTINGS, JSON.stringify(settings));
}

/** The API key, kept until the tab is closed. */
export const loadKey = () => attempt(() => sessionStorage.getItem(KEY), null) ?? "";
/** @param {string} key */
export const saveKey = (key) => attempt(() => sessionStorage.setItem(KEY, key), undefined);
/** The conversation this tab shows. */
export const loadOpen = () => attempt(() => sessionStorage.getItem(OPEN), null) ?? "";
/** @param {string} id */
export const saveOpen = (id) => attempt(() => sessionStorage.setItem(OPEN, id), undefined);
/** What is written but not sent. @param {string} id @returns {string} */
export const loadDraft = (id) => attempt(() => sessionStorage.getItem(DRAFT + id), null) ?? "";
/** @param {string} id @param {string} text */
export const saveDraft = (id, text) =>
  attempt(() => (text ? sessionStorage.setItem(DRAFT + id, text) : sessionStorage.removeItem(DRAFT + id)), undefined);

function write(key, text) {
  return attempt(() => (localStorage.setItem(key, text), true), false);
}

/** A browser that keeps nothing throws at every touch. */
function attempt(action, otherwise) {
  try {
    return action();
  } catch {
    return otherwise;
  }
}

/** @param {string | null} text */
function parsed(text) {
  return text === null ? null : attempt(() => JSON.parse(text), null);
}

/** @returns {value is Conversation} */
function isConversation(value) {
  const { id, title, changed, system, messages } = value ?? {};
  const texts = [id, title, system].every((text) => typeof text === "string");
  return texts && Number.isFinite(changed) && Array.isArray(messages) && messages.every(isMessage);
}

function isMessage(value) {
  const { role, text, state, pictures = [] } = value ?? {};
  const known = (role === "user" || role === "assistant") && typeof text === "string" && STATES.has(state);
  return known && Array.isArray(pictures) && pictures.every((picture) => typeof picture?.id === "string");
}
