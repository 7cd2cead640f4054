// The one way our pages talk to the server: JSON in, JSON out, errors in words.
//
//   import { postJSON, showError, toast } from "./api.js";
//   try { const next = await postJSON(url, { n: 2 }); } catch (error) { showError(error); }

const toasts = document.getElementById("toasts");

/** A request that failed. `message` is a sentence for people; `status` is 0 when no answer came; `body` is the server's JSON or null. */
export class ApiError extends Error {
  constructor(message, { status = 0, body = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.body = body;
  }

  /** Logging in (again) may help. */
  get needsLogin() {
    return this.status === 401 || this.status === 403;
  }

  /** The same request may succeed later: no answer, too many requests, or the server's fault. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export const getJSON = (url, options = {}) => request(url, options);

/** POST `body` as JSON. Resolves to the answer's JSON (null when it has none); rejects with ApiError, or AbortError when `signal` fires. */
export const postJSON = (url, body = {}, options = {}) =>
  request(url, { ...options, method: "POST", body: JSON.stringify(body) });

/** Any other method: `options` as of fetch, `body` a JSON text. */
export async function request(url, { headers = {}, ...options } = {}) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...options, headers: { ...requestHeaders(options), ...headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(toasts.dataset.offline);
  }
  const body = await jsonOf(response);
  if (response.redirected && body === null) throw new ApiError(toasts.dataset.loggedOut, { status: 401 }); // to the login page
  if (!response.ok) throw new ApiError(sentence(response.status, body), { status: response.status, body });
  return body;
}

/** Headers of a request of ours, for those who call fetch themselves (streams). */
export function requestHeaders({ body } = {}) {
  const headers = { Accept: "application/json", "X-CSRFToken": csrfToken() };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return headers;
}

export const csrfToken = () => document.querySelector('meta[name="csrf-token"]')?.content ?? "";

async function jsonOf(response) {
  if (!response.headers.get("Content-Type")?.includes("json")) return null;
  try {
    return await response.json();
  } catch {
    return null;
  }
}

/** What the server said, where it said something for people; else our own words for the status. */
function sentence(status, body) {
  const said = typeof body?.detail === "string" ? body.detail : (body?.error?.message ?? firstProblem(body));
  if (status === 401) return toasts.dataset.loggedOut;
  if (status === 403) return said ?? toasts.dataset.forbidden;
  if (status === 404) return said ?? toasts.dataset.missing;
  if (status === 429) return toasts.dataset.busy;
  if (status >= 500) return toasts.dataset.failed;
  return said ?? toasts.dataset.failed;
}

/** The first of a serializer's errors: {"field": ["sentence", …], …}. */
function firstProblem(body) {
  const [problem] = Object.values(body ?? {}).flat();
  return typeof problem === "string" ? problem : null;
}

/** Say something at the foot of the page. `kind`: "", "ok" or "error"; errors stay until dismissed. `link`: {href, text}. */
export function toast(message, { kind = "", link = null, seconds = kind === "error" ? 0 : 5 } = {}) {
  const element = document.createElement("div");
  element.className = kind ? `toast toast-${kind}` : "toast";
  const text = document.createElement("span");
  text.textContent = message;
  element.append(text);
  if (link) element.append(Object.assign(document.createElement("a"), { href: link.href, textContent: link.text }));
  if (seconds) setTimeout(() => element.remove(), seconds * 1000);
  else element.append(dismissButton(element));
  for (const shown of toasts.children) if (shown.firstChild.textContent === message) shown.remove();
  toasts.append(element);
  return element;
}

/** What went wrong is tried again: nothing is to be said of it any more. */
export function forgetErrors() {
  for (const shown of toasts.querySelectorAll(".toast-error")) shown.remove();
}

function dismissButton(element) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button button-quiet button-small";
  button.textContent = toasts.dataset.dismiss;
  button.addEventListener("click", () => element.remove());
  return button;
}

/** Show any failure in words, with a link to log in where that may help. What is not an ApiError is a bug: it is thrown again. */
export function showError(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof ApiError)) throw error;
  const back = encodeURIComponent(location.pathname + location.search);
  const link = error.needsLogin ? { href: `${toasts.dataset.loginUrl}?next=${back}`, text: toasts.dataset.login } : null;
  toast(error.message, { kind: "error", link });
}
