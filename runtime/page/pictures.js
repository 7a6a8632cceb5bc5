/** Images: read from files, scaled down to the model's size, kept in IndexedDB. */

import { newId } from "./store.js";

/** @typedef {import("./store.js").Picture} Picture */

export const LARGEST_SIDE = 896; // the input size of Gemma 3's vision tower; a larger image only takes longer to send
const LARGEST_FILE = 64 << 20;
const UNCHANGED = new Set(["image/png", "image/jpeg"]);
const QUALITY = 0.92;
const DAY = 24 * 60 * 60 * 1000;
const STORE = "pictures";

/** @type {Map<string, string>} */
const known = new Map();

/**
 * @param {File} file
 * @returns {Promise<Picture | null>} null if the browser cannot read it
 */
export async function addPicture(file) {
  const data = await readPicture(file).catch(() => null);
  if (!data) return null;
  const id = newId();
  known.set(id, data);
  await transact("readwrite", (store) => store.put(data, id));
  return { id, name: file.name };
}

/** @param {string} id @returns {Promise<string | null>} a data URL, or null if it is gone */
export async function getPicture(id) {
  const data = known.get(id) ?? (await transact("readonly", (store) => store.get(id)));
  if (typeof data !== "string") return null;
  known.set(id, data);
  return data;
}

/** @param {string[]} ids */
export async function deletePictures(ids) {
  for (const id of ids) known.delete(id);
  if (ids.length) await transact("readwrite", (store) => ids.forEach((id) => store.delete(id)));
}

/** Deletes images that no conversation has, unless they are so new that another tab may be about to send them. */
export async function deleteForgotten(needed) {
  const ids = (await transact("readonly", (store) => store.getAllKeys())) ?? [];
  const old = (id) => parseInt(String(id), 36) < Date.now() - DAY; // parseInt stops at the hyphen
  await deletePictures(ids.filter((id) => old(id) && !needed.has(id)));
}

/** @param {File} file @returns {Promise<string>} a data URL of a PNG or JPEG */
async function readPicture(file) {
  if (file.size > LARGEST_FILE) throw new Error("too large");
  const bitmap = await createImageBitmap(file);
  try {
    const small = Math.max(bitmap.width, bitmap.height) <= LARGEST_SIDE;
    return small && UNCHANGED.has(file.type) ? await dataUrl(file) : shrunk(bitmap, file.type);
  } finally {
    bitmap.close();
  }
}

/** @param {Blob} blob @returns {Promise<string>} */
function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** @param {ImageBitmap} bitmap @param {string} type photographs stay JPEG, everything else is drawn without loss */
function shrunk(bitmap, type) {
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL(type === "image/jpeg" ? type : "image/png", QUALITY);
}

/** @type {Promise<IDBDatabase> | undefined} */
let database;

/** Runs a transaction on the store; undefined where the browser stores nothing: images then last until a reload. */
async function transact(mode, action) {
  try {
    database ??= opened();
    const transaction = (await database).transaction(STORE, mode);
    const request = action(transaction.objectStore(STORE));
    return await new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } catch {
    return undefined;
  }
}

/** @returns {Promise<IDBDatabase>} */
function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("borealis", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}
