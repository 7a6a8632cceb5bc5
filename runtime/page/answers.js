/** Answers that are being streamed: at most one in a conversation, any number of conversations at once. */

import { ApiError, streamChat } from "./api.js";
import { getPicture } from "./pictures.js";

/**
 * @typedef {import("./store.js").Conversation} Conversation
 * @typedef {import("./store.js").Message} Message
 * @typedef {{conversation: Conversation, message: Message, controller: AbortController, began: number, wait: number,
 *   leaving: boolean}}
 *   Running `began` in milliseconds, `wait` seconds until the next try; `leaving` when the page is being left, which
 *   breaks the connection and is no error to show
 * @typedef {{started: (running: Running) => void, progress: (running: Running) => void,
 *   ended: (running: Running) => void}} Listeners
 */

/**
 * @param {() => {key: string, model: string, hasVision: boolean, sampling: object}} environment read when an answer starts
 * @param {Listeners} on
 */
export function createAnswers(environment, on) {
  /** @type {Map<string, Running>} */
  const running = new Map();

  /** @param {Conversation} conversation */
  async function start(conversation) {
    if (running.has(conversation.id)) return;
    const message = /** @type {Message} */ ({ role: "assistant", text: "", state: "running" });
    const controller = new AbortController();
    const entry = { conversation, message, controller, began: performance.now(), wait: 0, leaving: false };
    conversation.messages.push(message);
    running.set(conversation.id, entry);
    on.started(entry);
    try {
      await receive(entry, environment(), () => on.progress(entry));
    } catch (error) {
      if (!entry.leaving) fail(message, error, controller.signal);
    }
    running.delete(conversation.id);
    on.ended(entry);
  }

  return {
    start,
    /** @param {string} id @returns {Running | undefined} */
    get: (id) => running.get(id),
    all: () => [...running.values()],
    /** @param {string} id */
    stop: (id) => running.get(id)?.controller.abort(),
  };
}

/** @param {Running} entry @param {() => void} progress */
async function receive(entry, { key, model, hasVision, sampling }, progress) {
  const { conversation, message, controller } = entry;
  const messages = await history(conversation.system, conversation.messages.slice(0, -1), hasVision);
  const waiting = (seconds) => {
    entry.wait = seconds;
    if (seconds === 0) entry.began = performance.now();
    progress();
  };
  const options = { key, signal: controller.signal, waiting };
  const seen = { first: 0, reason: "", usage: null };
  for await (const piece of streamChat({ model, messages, ...sampling }, options)) {
    if ("text" in piece) {
      seen.first ||= performance.now();
      message.text += piece.text;
      progress();
    } else Object.assign(seen, piece);
  }
  message.state = seen.reason === "length" ? "length" : "done";
  message.speed = speed(seen, entry.began);
}

/** @returns {import("./store.js").Speed | undefined} */
function speed({ first, usage }, began) {
  if (!usage || !first) return undefined;
  const seconds = (performance.now() - first) / 1000;
  return { tokens: usage.completion, total: usage.total, seconds, first: (first - began) / 1000 };
}

/** @param {Message} message @param {unknown} error @param {AbortSignal} signal */
function fail(message, error, signal) {
  if (signal.aborted) {
    message.state = "stopped";
    return;
  }
  const kind = error instanceof ApiError ? error.kind : "server";
  message.state = "problem";
  message.problem = { kind, message: error instanceof Error ? error.message : "" };
}

/**
 * The conversation as messages of the API. Empty answers are left out, and neighbours of the same role are joined:
 * chat templates want roles to alternate.
 * @param {string} system @param {Message[]} messages @param {boolean} hasVision
 */
async function history(system, messages, hasVision) {
  const turns = system.trim() ? [{ role: "system", content: system }] : [];
  for (const { role, text, pictures } of messages) {
    const images = hasVision ? await imageParts(pictures ?? []) : [];
    if (!text && !images.length) continue;
    const content = images.length ? [...images, ...(text ? [{ type: "text", text }] : [])] : text;
    const last = turns.at(-1);
    if (last?.role === role) last.content = joined(last.content, content);
    else turns.push({ role, content });
  }
  return turns;
}

async function imageParts(pictures) {
  const addresses = await Promise.all(pictures.map(({ id }) => getPicture(id)));
  return addresses.filter(Boolean).map((url) => ({ type: "image_url", image_url: { url } }));
}

/** @param {string | object[]} one @param {string | object[]} other */
function joined(one, other) {
  if (typeof one === "string" && typeof other === "string") return `${one}\n\n${other}`;
  const parts = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);
  return [...parts(one), ...parts(other)];
}
