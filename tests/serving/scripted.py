"""A model server that does what a test tells it: the protocol's other end, for behaviour that a real engine shows only
by accident (cut streams, refusals, silence, restarts). It serves real HTTP on a port of its own.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "token-of-the-tests"


class ScriptedEngine:
    """State that tests set and read; every request is recorded in `requests` as (path, body)."""

    def __init__(self) -> None:
        self.url = ""
        self.adapters: dict[str, str] = {}  # resident name → path
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.n_questions = 0  # for its models
        self.pieces = ["Hello", ", ", "world", "!"]
        self.raw_stream: bytes | None = None  # sent instead of `pieces`
        self.cut_after: int | None = None  # the connection breaks after so many pieces
        self.hold = threading.Event()  # a stream waits for it after its first piece
        self.hold.set()
        self.silence = threading.Event()  # while it is clear, answers that are not streams do not come
        self.silence.set()
        self.left = threading.Event()  # set when a reader was seen to leave
        self.refusal: tuple[int, str] | None = None
        self.effects: dict[tuple[int, ...], list[float]] = {}  # what an adapter adds to log-probabilities
        self.scale = 1.0
        self.max_adapters = 4  # the embedded engine's own default
        self.before_load: Callable[[], object] = lambda: None  # called while a load is asked for
        self.unloadable: set[str] = set()  # names that it refuses to load
        self.scripts: dict[str, list[str]] = {}  # pieces by model name

    def models(self) -> list[str]:
        return ["base", *self.adapters]

    def paths(self, path: str) -> list[dict[str, Any]]:
        return [body for requested, body in self.requests if requested == path]


def tokens_of(messages: list[dict[str, str]], *, is_open: bool = False) -> list[int]:
    """Its tokenizer: one token per character; `\x02` opens a turn and `\x03` ends it."""
    text = "".join(f"\x02{turn['role']}:{turn['content']}\x03" for turn in messages)
    return [ord(character) for character in text + ("\x02assistant:" if is_open else "")]


@contextmanager
def running(engine: ScriptedEngine, port: int = 0) -> Iterator[str]:
    """Serves it; yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"engine": engine}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        engine.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield engine.url
    finally:
        engine.hold.set()
        engine.silence.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    engine: ScriptedEngine

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.engine.n_questions += 1
        if self._is_allowed({}):
            self._json({"object": "list", "data": [{"id": name} for name in self.engine.models()]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.engine.requests.append((self.path, body))
        if not self._is_allowed(body):
            return
        {
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
            "/v1/completions": self._completions,
            "/tokenize": self._tokenize,
            "/v1/chat/completions": self._chat,
        }[self.path](body)

    def _is_allowed(self, body: dict[str, Any]) -> bool:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._refuse(401, "wrong token")
        elif self.engine.refusal:
            self._refuse(*self.engine.refusal)
        elif "model" in body and body["model"] not in self.engine.models():
            self._refuse(404, f"The model `{body['model']}` does not exist.")
        else:
            return True
        return False

    def _load(self, body: dict[str, Any]) -> None:
        if body["lora_name"] in self.engine.adapters:
            self._refuse(400, "already loaded")
            return
        if body["lora_name"] in self.engine.unloadable:
            self._refuse(400, "no such folder")
            return
        self.engine.before_load()
        if len(self.engine.adapters) >= self.engine.max_adapters:
            self._refuse(507, "4 adapters are loaded, which is the limit; unload one first.")
            return
        self.engine.adapters[body["lora_name"]] = body["lora_path"]
        self._text("Success")

    def _unload(self, body: dict[str, Any]) -> None:
        del self.engine.adapters[body["lora_name"]]
        self._text("Success")

    def _completions(self, body: dict[str, Any]) -> None:
        ids = body["prompt"]
        effects = self.engine.effects.get(tuple(ids), [0.0] * (len(ids) - 1))
        scale = 0.0 if body["model"] == "base" else self.engine.scale
        logprobs = [None] + [
            {str(token): {"logprob": -2.0 + scale * effect, "rank": 1, "decoded_token": "x"}}
            for token, effect in zip(ids[1:], effects, strict=True)
        ]
        self._json({"choices": [{"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": logprobs}]})

    def _tokenize(self, body: dict[str, Any]) -> None:
        self._json({"tokens": tokens_of(body["messages"], is_open=body["add_generation_prompt"])})

    def _chat(self, body: dict[str, Any]) -> None:
        pieces = self.engine.scripts.get(body["model"], self.engine.pieces)
        if not body.get("stream"):
            self.engine.silence.wait()
            choice = {"index": 0, "message": {"content": "".join(pieces)}, "finish_reason": "stop"}
            self._json({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": len(pieces)}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._stream(pieces)
        except (BrokenPipeError, ConnectionResetError):
            self.engine.left.set()

    def _stream(self, pieces: list[str]) -> None:
        if self.engine.raw_stream is not None:
            self.wfile.write(self.engine.raw_stream)
            return
        for i, piece in enumerate(pieces):
            if i == self.engine.cut_after:
                return
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            while not self.engine.hold.wait(0.02):
                self.wfile.write(b": waiting\n\n")  # so that a reader who left is noticed
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(pieces)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def _refuse(self, status: int, message: str) -> None:
        self._json({"error": {"message": message, "type": "error", "param": None, "code": status}}, status)

    def _json(self, body: dict[str, Any], status: int = 200) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _text(self, text: str) -> None:
        self._send(200, "text/plain", text.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
