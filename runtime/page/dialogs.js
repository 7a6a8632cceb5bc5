/** Modal dialogs with one question, in the browser's dialog element, which keeps and restores the focus. */

import { el } from "./dom.js";
import { t } from "./texts.js";

/** @typedef {{label: string, value?: string, type?: string}} Field */

/**
 * @param {{title: string, text?: string, field?: Field, action: string}} question
 * @returns {Promise<string | null>} what is in the field, "" without one; null if the dialog was cancelled
 */
export function ask({ title, text, field, action }) {
  return new Promise((resolve) => {
    const input = field && el("input", { type: field.type ?? "text", autocomplete: "off", "aria-label": field.label });
    if (input) input.value = field.value ?? "";
    const cancel = el("button", { type: "button", class: "soft", text: t("cancel"), click: () => dialog.close() });
    const accept = el("button", { type: "button", class: "strong", text: action, click: () => dialog.close("yes") });
    const dialog = el("dialog", { class: "small", "aria-label": title }, el("h2", { text: title }));
    if (text) dialog.append(el("p", { text }));
    if (input) dialog.append(el("label", {}, el("span", { text: field.label }), input));
    dialog.append(el("div", { class: "choices" }, cancel, accept));
    input?.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault(); // or the same key presses the button that has the focus after the dialog
      dialog.close("yes");
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? (input?.value ?? "") : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    (input ?? accept).focus();
    input?.select();
  });
}

/** A click beside the dialog closes it. @param {HTMLDialogElement} dialog */
export function closeOutside(dialog) {
  dialog.addEventListener("pointerdown", (event) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const inside = event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
    if (event.target === dialog && !inside) dialog.close();
  });
}
