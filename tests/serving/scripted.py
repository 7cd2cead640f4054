"""A model server that does what a test tells it: the protocol's other end, for behaviour that a real engine shows only
by accident (cut streams, refusals, silence, restarts). It serves real HTTP on a port of its own.
"""

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "token-of-the-tests"


class ScriptedEngine:
    """State that tests set and read; every request is recorded in `requests` as (path, body)."""

    def __init__(self) -> None:
        self.url = ""
        self.adapters: dict[str, str] = {}  # resident name → path
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.callers: list[str | None] = []  # for whom each of them was
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
        self.page = ""  # what a proxy before it answers to everything, with status 200
        self.effects: dict[tuple[int, ...], list[float]] = {}  # what an adapter adds to log-probabilities
        self.scale = 1.0
        self.max_adapters = 4  # the embedded engine's own default
        self.before_load: Callable[[], object] = lambda: None  # called while a load is asked for
        self.before_probe: Callable[[], object] = lambda: None  # called while log-probabilities are asked for
        self.lingering = 0  # so many loads are refused because a version that was unloaded keeps its place for answers
        self.unloadable: set[str] = set()  # names that it refuses to load
        self.stuck: set[str] = set()  # names that it refuses to unload
        self.unusable: set[str] = set()  # names of models that fail when they are asked
        self.sha256s: dict[str, str] = {}  # by model name, what it says of their weights
        self.scripts: dict[str, list[str]] = {}  # pieces by model name
        self.finish_reason = "stop"
        self.context: int | None = None  # tokens; None: it does not say, and refuses nothing for its length
        self.asked = threading.Event()  # set by the first request with a body
        self.n_connections = 0
        self.hang_ups = 0  # so many requests end without an answer, as when a process is killed

        self._open: set[socket.socket] = set()

    def models(self) -> list[str]:
        return ["base", *self.adapters]

    def note_connection(self, connection: socket.socket) -> None:
        self.n_connections += 1
        self._open.add(connection)

    def note_end(self, connection: socket.socket) -> None:
        self._open.discard(connection)

    def hang_up(self) -> None:
        """Ends every kept connection, as a process does that ends."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

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
        engine.hang_up()
        thread.join()


class _Chat:
    name, chunk_name = "chat.completion", "chat.completion.chunk"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    @staticmethod
    def piece(text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


class _Text:
    name = chunk_name = "text_completion"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        return {"text": text}

    piece = whole


class _Handler(BaseHTTPRequestHandler):
    engine: ScriptedEngine
    protocol_version = "HTTP/1.1"  # connections are kept, as by every real engine

    def setup(self) -> None:
        super().setup()
        self.engine.note_connection(self.connection)

    def finish(self) -> None:
        self.engine.note_end(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.engine.n_questions += 1
        if self._is_allowed({}):
            known = self.engine.sha256s
            size = {"max_model_len": self.engine.context} if self.engine.context else {}
            data = [
                {"id": name, **size} | ({"sha256": known[name]} if name in known else {})
                for name in self.engine.models()
            ]
            self._json({"object": "list", "data": data})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.engine.requests.append((self.path, body))
        self.engine.callers.append(self.headers["X-Caller"])
        self.engine.asked.set()
        if self.engine.hang_ups:
            self.engine.hang_ups -= 1
            self.close_connection = True
            return
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
        elif self.engine.page:
            self._text(self.engine.page)
        elif body.get("model") in self.engine.unusable:
            self._refuse(500, "internal error")
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
        is_held = bool(self.engine.lingering) and len(self.engine.adapters) == self.engine.max_adapters - 1
        self.engine.lingering -= is_held
        if is_held or len(self.engine.adapters) >= self.engine.max_adapters:
            self._refuse(507, "4 adapters are loaded, which is the limit; unload one first.")
            return
        self.engine.adapters[body["lora_name"]] = body["lora_path"]
        self.engine.sha256s.pop(body["lora_name"], None)
        self._text("Success")

    def _unload(self, body: dict[str, Any]) -> None:
        if body["lora_name"] in self.engine.stuck:
            self._refuse(500, f"Failed to remove lora adapter '{body['lora_name']}' from the engine.")
            return
        del self.engine.adapters[body["lora_name"]]
        self._text("Success")

    def _completions(self, body: dict[str, Any]) -> None:
        if isinstance(body["prompt"], str):
            self._answer(body, _Text)
            return
        self.engine.before_probe()
        scale = 0.0 if body["model"] == "base" else self.engine.scale
        choices = []
        for i, ids in enumerate(body["prompt"]):
            effects = self.engine.effects.get(tuple(ids), [0.0] * (len(ids) - 1))
            logprobs = [None] + [
                {str(token): {"logprob": -2.0 + scale * effect, "rank": 1, "decoded_token": "x"}}
                for token, effect in zip(ids[1:], effects, strict=True)
            ]
            choices.append({"index": i, "text": "", "finish_reason": "length", "prompt_logprobs": logprobs})
        self._json({"choices": choices})

    def _tokenize(self, body: dict[str, Any]) -> None:
        tokens = tokens_of(body["messages"], is_open=body.get("add_generation_prompt", True))
        self._json({"tokens": tokens, "max_model_len": self.engine.context})

    def _chat(self, body: dict[str, Any]) -> None:
        context = self.engine.context
        if context and context < len(tokens_of(body["messages"], is_open=True)) + body.get("max_tokens", 1):
            self._refuse(400, f"This model's context is {context} tokens; more are asked for.")
            return
        self._answer(body, _Chat)

    def _answer(self, body: dict[str, Any], kind: "type[_Chat] | type[_Text]") -> None:
        pieces = self.engine.scripts.get(body["model"], self.engine.pieces)
        head = {"id": "x-1", "created": 1, "model": body["model"], "system_fingerprint": "0123456789ab"}
        usage = {"prompt_tokens": 3, "completion_tokens": len(pieces), "total_tokens": 3 + len(pieces)}
        if not body.get("stream"):
            self._wait_unless_left()
            choice = {"index": 0, **kind.whole("".join(pieces)), "finish_reason": "stop"}
            self._json({**head, "object": kind.name, "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._stream(pieces, {**head, "object": kind.chunk_name}, kind, usage)
        except (BrokenPipeError, ConnectionResetError):
            self.engine.left.set()

    def _wait_unless_left(self) -> None:
        """Until the silence ends; meanwhile it is noticed when the reader leaves."""
        while not self.engine.silence.wait(0.02):
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                self.engine.left.set()
                self.engine.silence.wait()

    def _stream(
        self, pieces: list[str], head: dict[str, Any], kind: "type[_Chat] | type[_Text]", usage: dict[str, Any]
    ) -> None:
        if self.engine.raw_stream is not None:
            self.wfile.write(self.engine.raw_stream)
            return
        while not self.engine.silence.wait(0.02):
            self.wfile.write(b": waiting\n\n")  # so that a reader who left is noticed
        for i, piece in enumerate(pieces):
            if i == self.engine.cut_after:
                return
            choice = {"index": 0, **kind.piece(piece), "finish_reason": None}
            self._event({**head, "choices": [choice], "usage": None})
            while not self.engine.hold.wait(0.02):
                self.wfile.write(b": waiting\n\n")
        self._event(
            {
                **head,
                "choices": [{"index": 0, **kind.piece(""), "finish_reason": self.engine.finish_reason}],
                "usage": None,
            }
        )
        self._event({**head, "choices": [], "usage": usage})
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
