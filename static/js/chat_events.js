// The server-sent events of a request of ours.
import { ApiError, requestHeaders } from "./api.js";

const SILENCE_MS = 35_000; // the server says something every ten seconds: after this, nobody is there any more

/** Yields {kind, data}. Comments (keep-alive) are left out. Rejects with ApiError, AbortError, or TypeError when the connection
 *  breaks, or is silent for so long that it must be broken: a laptop that slept, another network. */
export async function* events(url, { signal, method = "GET" } = {}) {
  const silence = new AbortController();
  let timer = 0;
  const listen = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(new TypeError("silence")), SILENCE_MS);
  };
  try {
    listen();
    yield* read(url, { method, signal: AbortSignal.any([signal, silence.signal]) }, listen);
  } finally {
    clearTimeout(timer);
  }
}

async function* read(url, options, listen) {
  const response = await fetch(url, { ...options, headers: { ...requestHeaders(), Accept: "text/event-stream" } });
  if (!response.ok || response.redirected) {
    const status = response.redirected ? 401 : response.status;
    throw new ApiError(document.getElementById("toasts").dataset[status < 500 ? "forbidden" : "failed"], { status });
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    listen();
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const event = /^event: (\w+)\ndata: (.*)$/.exec(part);
      if (event) yield { kind: event[1], data: JSON.parse(event[2]) };
    }
  }
}
