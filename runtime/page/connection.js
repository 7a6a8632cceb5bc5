/** The connection to the server: whether it responds, which model it has, and the API key it may need. */

import { ApiError, listModels } from "./api.js";
import { ask } from "./dialogs.js";
import { byId, el } from "./dom.js";
import { loadKey, saveKey } from "./store.js";
import { number, t } from "./texts.js";

/** @typedef {import("./api.js").Model} Model */

const RETRY_INTERVAL = 2000;
const TEMPORARY = new Set(["network", "busy", "loading"]);

export function createConnection() {
  /** @type {Model | null} */
  let model = null;
  let state = /** @type {"connecting" | "connected" | import("./api.js").Kind} */ ("connecting");
  let asking = /** @type {Promise<string | null> | null} */ (null);

  async function connect() {
    try {
      [model = null] = await listModels(loadKey());
      state = "connected";
    } catch (error) {
      const asked = state === "key";
      state = error instanceof ApiError ? error.kind : "server";
      if (state === "key" && !asked && (await askForKey())) return connect();
    }
    show();
  }

  /** Connects again; asks for the key if it is missing. */
  function retry() {
    state = "connecting";
    return connect();
  }

  function show() {
    const about = [model?.id ?? t(state === "connected" ? "noModel" : "connecting")];
    if (model?.vision) about.push(t("sees"));
    if (model?.context) about.push(t("context", { n: number(model.context) }));
    byId("model").textContent = about.join(" · ");
    const fine = state === "connected" || state === "connecting";
    const text = fine ? "" : t(`problem_${state}`);
    if (byId("connection").firstChild?.textContent === text) return; // an alert is not to be read every five seconds
    const button = el("button", { type: "button", class: "soft", text: t("retry"), click: retry });
    byId("connection").replaceChildren(...(fine ? [] : [el("p", { text }), button]));
  }

  /** @returns {Promise<boolean>} whether there is a new key; one question at a time */
  async function askForKey() {
    const field = { label: t("key"), type: "password" };
    asking ??= ask({ title: t("keyTitle"), text: t("keyText"), field, action: t("ok") });
    const key = await asking;
    asking = null;
    if (key?.trim()) saveKey(key.trim());
    return Boolean(key?.trim());
  }

  setInterval(() => TEMPORARY.has(state) && !document.hidden && connect(), RETRY_INTERVAL);
  return { connect, askForKey, show, model: () => model };
}
