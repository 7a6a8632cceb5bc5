/** The message composer: text, images from the clipboard, drag and drop or files, send and stop. */

import { byId, el, iconButton } from "./dom.js";
import { addPicture, deletePictures, getPicture } from "./pictures.js";
import { loadDraft, saveDraft } from "./store.js";
import { t } from "./texts.js";

/** @typedef {import("./store.js").Picture} Picture */

/**
 * @param {{send: (text: string, pictures: Picture[]) => void, stop: () => void, hasVision: () => boolean,
 *   notify: (text: string) => void}} page `hasVision`: whether the model accepts images
 */
export function createComposer({ send, stop, hasVision, notify }) {
  const input = byId("input");
  /** @type {Map<string, Picture[]>} what is attached and not sent, by conversation */
  const attached = new Map();
  let id = "";
  let busy = false;
  let reading = Promise.resolve();

  /** The conversation that is written in. @param {string} conversation */
  function open(conversation) {
    id = conversation;
    input.value = loadDraft(id);
    fit(input);
    showAttached();
  }

  /** @param {boolean} value whether an answer is being written here */
  function setBusy(value) {
    const focused = document.activeElement === byId(value ? "send" : "stop");
    busy = value;
    byId("send").hidden = value;
    byId("stop").hidden = !value;
    if (focused) (value ? byId("stop") : input).focus();
  }

  async function accept() {
    await reading;
    const text = input.value.trim();
    const pictures = attached.get(id) ?? [];
    if (busy || (!text && !pictures.length)) return;
    attached.delete(id);
    saveDraft(id, "");
    input.value = "";
    fit(input);
    showAttached();
    send(text, pictures);
  }

  /** @param {Iterable<File>} files one after the other, in the order they came */
  function add(files) {
    if (!hasVision()) return notify(t("cannotSee"));
    const to = id;
    for (const file of files) reading = reading.then(() => addOne(to, file));
  }

  async function addOne(to, file) {
    const picture = await addPicture(file);
    if (!picture) return notify(t("notPicture", { name: file.name }));
    attached.set(to, [...(attached.get(to) ?? []), picture]);
    if (to === id) showAttached();
  }

  function showAttached() {
    const pictures = attached.get(id) ?? [];
    byId("attached").hidden = !pictures.length;
    byId("attached").replaceChildren(...pictures.map((picture) => chip(picture, remove)));
  }

  /** @param {Picture} picture */
  function remove(picture) {
    attached.set(id, (attached.get(id) ?? []).filter((other) => other !== picture));
    deletePictures([picture.id]);
    showAttached();
    input.focus();
  }

  input.addEventListener("input", () => {
    fit(input);
    saveDraft(id, input.value);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch()) return;
    event.preventDefault();
    accept();
  });
  byId("send").addEventListener("click", accept);
  byId("stop").addEventListener("click", stop);
  byId("attach").addEventListener("click", () => (hasVision() ? byId("files").click() : notify(t("cannotSee"))));
  byId("files").addEventListener("change", () => {
    add([...byId("files").files]);
    byId("files").value = "";
  });
  input.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (!files.length) return;
    event.preventDefault();
    add([...files]);
  });
  listenForDrops(add);
  return { open, setBusy, focus: () => touch() || input.focus() };
}

/** On a touch screen Enter is the only way to a new line. */
const touch = () => matchMedia("(hover: none) and (pointer: coarse)").matches;

/** As high as its text, where the style sheet cannot do that. @param {HTMLTextAreaElement} input */
function fit(input) {
  if (CSS.supports("field-sizing", "content")) return;
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

/** @param {Picture} picture @param {(picture: Picture) => void} remove */
function chip(picture, remove) {
  const image = el("img", { alt: picture.name });
  getPicture(picture.id).then((address) => image.setAttribute("src", address ?? ""));
  return el("li", {}, image, iconButton("close", t("removePicture", { name: picture.name }), () => remove(picture)));
}

/** Files may be dropped anywhere on the page. @param {(files: File[]) => void} add */
function listenForDrops(add) {
  const show = (value) => document.body.classList.toggle("dropping", value);
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    show(true);
  });
  window.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false));
  window.addEventListener("drop", (event) => {
    show(false);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
}
