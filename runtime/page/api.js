/** The server's OpenAI-compatible API on this page's own origin: the models it has, and answers as a stream. */

/** @typedef {"network" | "key" | "context" | "loading" | "busy" | "server" | "dropped"} Kind */
/** @typedef {{id: string, vision: boolean | null, context: number | null}} Model */
/** @typedef {{completion: number, total: number}} Usage tokens */
/** @typedef {{text: string} | {reason: string} | {usage: Usage}} Piece of an answer */

const MAX_EVENT_SIZE = 16 << 20;
const MAX_RETRIES = 60;
const MAX_WAIT = 120;
const DEFAULT_WAIT = 2;

/** A failed request. `kind` chooses the page's own text, `message` is the server's. */
export class ApiError extends Error {
  /** @param {Kind} kind @param {string} [message] */
  constructor(kind, message = "") {
    super(message);
    this.kind = kind;
  }
}

/** @param {string} key @returns {Promise<Model[]>} */
export async function listModels(key) {
  const response = await fetchFromServer("v1/models", { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  const { data } = await json(response);
  return (Array.isArray(data) ? data : []).map(({ id, meta }) => ({
    id: String(id),
    vision: typeof meta?.vision === "boolean" ? meta.vision : null,
    context: Number.isInteger(meta?.context) ? meta.context : null,
  }));
}

/**
 * Requests an answer and yields its pieces. Retries while the server says that it is busy.
 * @param {object} request body of the request, without what is about streaming
 * @param {{key: string, signal: AbortSignal, waiting: (seconds: number) => void}} options `waiting` hears every
 *   second how many are left, and 0 when the request goes out
 * @returns {AsyncGenerator<Piece>}
 */
export async function* streamChat(request, { key, signal, waiting }) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const init = { method: "POST", headers: headers(key), body, signal };
  const response = await fetchWithRetries(() => fetchFromServer("v1/chat/completions", init), signal, waiting);
  if (!response.body) throw new ApiError("dropped");
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    yield* pieces(parse(data));
  }
  throw new ApiError("dropped");
}

/** @param {string} key */
function headers(key) {
  const all = { "Content-Type": "application/json" };
  return key ? { ...all, Authorization: `Bearer ${key}` } : all;
}

/** @param {string} address @param {RequestInit} init */
async function fetchFromServer(address, init) {
  try {
    return await fetch(address, { ...init, cache: "no-store", redirect: "error" });
  } catch (error) {
    throw init.signal?.aborted ? error : new ApiError("network");
  }
}

/** @param {() => Promise<Response>} ask @returns {Promise<Response>} the first response without "retry later" */
async function fetchWithRetries(ask, signal, waiting) {
  for (let waits = 0; ; waits++) {
    waiting(0);
    const response = await ask();
    if (response.ok) return response;
    const seconds = retryAfter(response);
    if (seconds === null || waits >= MAX_RETRIES) throw await failure(response);
    await response.body?.cancel();
    await countDown(seconds, signal, waiting);
  }
}

/** Seconds to wait before the next try, or null if a retry is no use. @param {Response} response */
function retryAfter(response) {
  const header = response.headers.get("Retry-After");
  if (response.status !== 429 && !(response.status === 503 && header)) return null;
  const seconds = /^\d+$/.test(header ?? "") ? Number(header) : (Date.parse(header ?? "") - Date.now()) / 1000;
  return Math.min(Math.max(Math.ceil(Number.isFinite(seconds) ? seconds : DEFAULT_WAIT), 1), MAX_WAIT);
}

async function countDown(seconds, signal, waiting) {
  for (let left = seconds; left > 0; left--) {
    waiting(left);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000);
      signal.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
    });
    signal.throwIfAborted();
  }
}

/** @param {Response} response @returns {Promise<ApiError>} */
async function failure(response) {
  const text = await response.text().catch(() => "");
  return new ApiError(kindOf(response.status, text), messageIn(text) || `HTTP ${response.status}`);
}

/** @param {number} status @param {string} text @returns {Kind} */
function kindOf(status, text) {
  if (status === 401) return "key";
  if (status === 503 && /"code":\s*"loading"/.test(text)) return "loading";
  if (status === 429 || status === 503) return "busy";
  return /context[_ ](length|size|window)|exceeds? the context|tokens, the context/i.test(text) ? "context" : "server";
}

/** @param {string} text */
function messageIn(text) {
  try {
    const { error } = JSON.parse(text);
    return String(error?.message ?? error ?? "").slice(0, 1000);
  } catch {
    return "";
  }
}

async function json(response) {
  try {
    return await response.json();
  } catch {
    throw new ApiError("server");
  }
}

/**
 * The data of every server-sent event of a stream, however its bytes are split.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<string>}
 */
export async function* events(stream, signal) {
  let data = /** @type {string[]} */ ([]);
  for await (const line of linesOf(stream, signal)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    if (line !== "" || !data.length) continue;
    yield data.join("\n");
    data = [];
  }
}

/** Complete lines only: a line without its end is the rest of a broken connection. */
async function* linesOf(stream, signal) {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader, signal);
      if (done) return;
      const fresh = decoder.decode(value, { stream: true });
      if (!/[\r\n]/.test(fresh)) {
        rest += fresh;
      } else {
        const lines = (rest + fresh).split(/\r\n|\n|\r(?!$)/);
        rest = lines.pop() ?? "";
        yield* lines;
      }
      if (rest.length > MAX_EVENT_SIZE) throw new ApiError("server");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    throw signal?.aborted ? error : new ApiError("dropped");
  }
}

/** @param {string} data */
function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("server");
  }
}

/** @returns {Generator<Piece>} what one event says */
function* pieces(event) {
  if (event?.error) {
    const text = JSON.stringify(event);
    throw new ApiError(kindOf(0, text), messageIn(text));
  }
  const choice = event?.choices?.[0];
  if (typeof choice?.delta?.content === "string" && choice.delta.content) yield { text: choice.delta.content };
  if (typeof choice?.finish_reason === "string") yield { reason: choice.finish_reason };
  const { completion_tokens: completion, total_tokens: total } = event?.usage ?? {};
  if (Number.isFinite(completion)) yield { usage: { completion, total: Number.isFinite(total) ? total : completion } };
}
