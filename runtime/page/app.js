/** The page's state: which conversation is open; connects sidebar, messages, composer, answers and settings. */

import { createAnswers } from "./answers.js";
import { createComposer } from "./composer.js";
import { createConnection } from "./connection.js";
import { ask } from "./dialogs.js";
import { byId } from "./dom.js";
import { createMessages } from "./messages.js";
import { deleteForgotten, deletePictures } from "./pictures.js";
import { createSettings, sampling } from "./settings.js";
import { createSidebar } from "./sidebar.js";
import * as store from "./store.js";
import { chooseLanguage, fillIn, setLanguage, t } from "./texts.js";

/**
 * @typedef {import("./store.js").Conversation} Conversation
 * @typedef {import("./store.js").Message} Message
 */

const SAVE_EVERY = 500;
const LONGEST_TITLE = 60;
const NEW = "new";

const settings = store.loadSettings();
/** @type {Map<string, Conversation>} */
const conversations = new Map(store.loadConversations().map((one) => [one.id, one]));
let current = remembered() ?? fresh();

const connection = createConnection();
const { model } = connection;
const hasVision = () => model()?.vision !== false;
const answers = createAnswers(
  () => ({ key: store.loadKey(), model: model()?.id ?? "borealis", hasVision: hasVision(), sampling: sampling(settings) }),
  { started, progress, ended },
);
const messages = createMessages({
  scroller: byId("log"),
  list: byId("messages"),
  toBottom: byId("to-bottom"),
  announcer: byId("announcer"),
  actions: { again, edit, remove },
  context: () => model()?.context ?? null,
});
const composer = createComposer({ send, stop: () => answers.stop(current.id), hasVision, notify });
const sidebar = createSidebar({ open: (id) => open(conversations.get(id)), rename, remove: removeConversation });
const dialog = createSettings({
  settings,
  save: () => store.saveSettings(settings),
  system: () => current.system,
  setSystem,
});

// Conversations

/** @returns {Conversation} */
function fresh() {
  return store.newConversation(settings.system ?? "");
}

/** What this tab had open, or else the latest; nothing if that was a new one. @returns {Conversation | undefined} */
function remembered() {
  const id = store.loadOpen();
  return id === NEW ? undefined : (conversations.get(id) ?? conversations.values().next().value);
}

/** @param {Conversation | undefined} conversation */
function open(conversation) {
  if (!conversation) return;
  current = conversation;
  show();
  openComposer();
  sidebar.close();
  composer.focus();
}

/** A conversation without messages is not kept, but what is written in it is. */
function openComposer() {
  const id = conversations.has(current.id) ? current.id : NEW;
  store.saveOpen(id);
  composer.open(id);
}

/** Renders the current conversation. */
function show() {
  const entry = answers.get(current.id);
  messages.show(current, entry);
  composer.setBusy(entry !== undefined);
  showTitles();
}

function showTitles() {
  const name = current.title || t("untitled");
  byId("title").textContent = name;
  document.title = current.title ? `${name} – ${t("appName")}` : t("appName");
  const latest = [...conversations.values()].sort((one, other) => other.changed - one.changed);
  sidebar.show(latest, current.id, new Set(answers.all().map((entry) => entry.conversation.id)));
}

/** @param {Conversation} conversation */
function save(conversation) {
  conversations.set(conversation.id, conversation);
  if (!store.saveConversation(conversation)) notify(t("storageFull"));
}

/** @param {string} text */
function setSystem(text) {
  current.system = text;
  if (conversations.has(current.id)) save(current);
  if (!answers.get(current.id)) messages.show(current, undefined);
}

/** @param {string} id */
async function rename(id) {
  const conversation = conversations.get(id);
  if (!conversation) return;
  const field = { label: t("title"), value: conversation.title };
  const title = await ask({ title: t("rename"), field, action: t("save") });
  if (!title?.trim()) return;
  Object.assign(conversation, { title: title.trim(), named: true });
  save(conversation);
  showTitles();
}

/** @param {string} id */
async function removeConversation(id) {
  const conversation = conversations.get(id);
  if (!conversation) return;
  const text = t("deleteConversationText", { title: conversation.title || t("untitled") });
  if ((await ask({ title: t("deleteConversation"), text, action: t("delete") })) === null) return;
  answers.stop(id);
  conversations.delete(id);
  store.deleteConversation(id);
  deletePictures(conversation.messages.flatMap(pictureIds));
  notify("");
  if (id === current.id) open(conversations.values().next().value ?? fresh());
  else showTitles();
}

/** @param {Message} message */
const pictureIds = (message) => (message.pictures ?? []).map((picture) => picture.id);

// Messages

/** @param {string} text @param {import("./store.js").Picture[]} pictures */
function send(text, pictures) {
  current.messages.push({ role: "user", text, ...(pictures.length && { pictures }) });
  answer();
  openComposer();
}

function answer() {
  notify("");
  const unseen = !hasVision() && current.messages.some((message) => message.pictures?.length);
  if (!current.named) current.title = titleOf(current);
  current.changed = Date.now();
  answers.start(current);
  if (unseen) notify(t("picturesLeftOut"));
}

/** @param {Conversation} conversation the beginning of its first message */
function titleOf({ messages: [first] }) {
  const line = first?.text.trim().split("\n")[0] ?? "";
  if (!line) return first ? t("picture") : "";
  return line.length <= LONGEST_TITLE ? line : `${line.slice(0, LONGEST_TITLE).trimEnd()} …`;
}

/** Regenerates the last answer. */
function again() {
  while (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  messages.show(current, undefined);
  composer.focus();
  if (current.messages.length) answer();
}

/** @param {Message} message @param {string} text */
function edit(message, text) {
  current.messages.length = current.messages.indexOf(message) + 1;
  message.text = text;
  again();
}

/** @param {Message} message */
function remove(message) {
  const gone = current.messages.splice(current.messages.indexOf(message));
  deletePictures(gone.flatMap(pictureIds));
  save(current);
  show();
  composer.focus();
}

// Answers

/** @param {import("./answers.js").Running} entry */
function started(entry) {
  save(entry.conversation);
  messages.begin(entry);
  composer.setBusy(true);
  showTitles();
}

/** @type {Map<string, number>} */
const timers = new Map();

/** @param {import("./answers.js").Running} entry */
function progress({ conversation }) {
  const { id } = conversation;
  if (!timers.has(id)) timers.set(id, setTimeout(() => saveNow(conversation), SAVE_EVERY));
  if (id === current.id) messages.progress();
}

/** @param {Conversation} conversation */
function saveNow(conversation) {
  clearTimeout(timers.get(conversation.id));
  timers.delete(conversation.id);
  if (conversations.has(conversation.id)) save(conversation);
}

/** @param {import("./answers.js").Running} entry */
function ended(entry) {
  const { conversation, message } = entry;
  saveNow(conversation);
  if (conversation.id === current.id) {
    messages.end(entry);
    composer.setBusy(false);
  }
  showTitles();
  if (message.problem?.kind === "key") connection.askForKey().then((given) => given && conversation === current && again());
  if (message.problem?.kind === "network") connection.connect();
}

// The page

/** @param {string} text "" takes the notice away */
function notify(text) {
  if (byId("notice").textContent !== text) byId("notice").textContent = text;
}

function translate() {
  setLanguage(settings.language);
  fillIn();
  dialog.relabel();
  notify("");
  connection.show();
  show();
}

/** @param {string} name "language" or "theme" */
function bindChoice(name, otherwise, apply) {
  byId(name).value = settings[name] ?? otherwise;
  if (!byId(name).value) byId(name).value = otherwise;
  settings[name] = byId(name).value;
  byId(name).addEventListener("change", () => {
    settings[name] = byId(name).value;
    store.saveSettings(settings);
    apply();
  });
  apply();
}

function escape(event) {
  if (event.key !== "Escape" || event.isComposing || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]") || sidebar.close()) return;
  answers.stop(current.id);
}

/** @param {string} id another tab changed it */
function changedElsewhere(id) {
  if (answers.get(id)) return;
  const conversation = store.loadConversation(id);
  if (conversation) conversations.set(id, conversation);
  else conversations.delete(id);
  if (id !== current.id) return showTitles();
  if (!conversation) notify(t("conversationGone"));
  current = conversation ?? fresh();
  show();
}

/** What is written stays as it is now; an answer that is kept as running was interrupted. */
function leave() {
  for (const entry of answers.all()) {
    entry.leaving = true;
    saveNow(entry.conversation);
  }
}

function main() {
  bindChoice("theme", "auto", () => (document.documentElement.dataset.theme = settings.theme));
  bindChoice("language", chooseLanguage(navigator.languages), translate);
  byId("new").addEventListener("click", () => open(fresh()));
  document.addEventListener("keydown", escape);
  store.watchOtherTabs(changedElsewhere);
  window.addEventListener("pagehide", leave);
  window.addEventListener("pageshow", () => answers.all().forEach((entry) => (entry.leaving = false)));
  setInterval(() => answers.get(current.id) && messages.tick(), 1000);
  openComposer();
  composer.focus();
  connection.connect();
  deleteForgotten(new Set([...conversations.values()].flatMap(({ messages: all }) => all.flatMap(pictureIds))));
}

main();
