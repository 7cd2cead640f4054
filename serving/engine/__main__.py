"""`python -m serving.engine --model DIR`: serve a prepared model. The token comes from ENGINE_TOKEN."""

import argparse
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from serving.engine.connection import Connection
from serving.engine.engine import Engine, Options, build
from serving.engine.model_folder import BrokenModel
from serving.engine.protocol import MAX_CHOICES
from serving.engine.scheduler import Limits
from serving.engine.server import create_app

log = logging.getLogger("engine")

GIL_SECONDS = 0.0005  # the engine's thread must not wait 5 ms for the server's whenever it returns from a kernel
SHUTDOWN_SECONDS = 2
# Longer than clients keep an idle connection (httpx: 5 s): else one of them sends its request into a closing one.
KEEP_ALIVE_SECONDS = 60


class Server(uvicorn.Server):
    """uvicorn, which ends the engine's requests when it is told to stop: open streams then end by themselves."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, which would raise the signal again at the end: being told to stop is no failure."""
        self._engine.stop()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def main(arguments: list[str]) -> int:
    started_at = time.monotonic()
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), format="%(levelname)s %(name)s: %(message)s")
    token = os.environ.get("ENGINE_TOKEN", "")
    if not token:
        return _refuse("Set ENGINE_TOKEN: callers of the engine must show it.")
    try:
        door = _listen(options.host, options.port)
        engine = build(_engine_options(options))
    except (BrokenModel, OSError) as error:
        return _refuse(str(error))
    sys.setswitchinterval(GIL_SECONDS)
    engine.start()
    log.info("%s ready on port %d after %.1f s", options.name, options.port, time.monotonic() - started_at)
    config = uvicorn.Config(
        create_app(engine, token),
        http=Connection,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    Server(config, engine).run(sockets=[door])
    engine.stop()
    engine.join(SHUTDOWN_SECONDS)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, taken before the model is loaded. Raises OSError with a sentence for people."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise OSError(f"The engine cannot listen on {host}:{port} ({error.strerror}); choose another port.") from error
    return door


def _engine_options(options: argparse.Namespace) -> Options:
    limits = Limits(options.max_running, options.max_waiting, options.max_tokens, options.max_wait, options.max_seconds)
    return Options(
        model=options.model,
        name=options.name,
        adapters=options.adapters,
        n_threads=options.threads,
        context=options.context,
        max_adapters=options.max_adapters,
        prefix_cache_bytes=options.prefix_cache_mib * 2**20,
        memory_bytes=options.memory_mib * 2**20,
        cache=options.cache,
        limits=limits,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.engine", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder made by serving.engine.prepare")
    parser.add_argument("--name", default="base", help="the model name of the base")
    parser.add_argument("--adapters", type=Path, help="folder below which adapters may be loaded from")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_whole(0, 65535), default=8001)
    parser.add_argument("--threads", type=_whole(0), default=0, help="cores to compute with; 0 for all")
    parser.add_argument(
        "--context", type=_whole(0), default=0, help="longest prompt with answer, in tokens; 0 for the model's"
    )
    parser.add_argument(
        "--max-adapters", type=_whole(0), default=Options.max_adapters, help="adapters resident at once"
    )
    parser.add_argument("--max-running", type=_whole(1), default=Limits.max_running, help="sequences computed at once")
    parser.add_argument(
        "--max-waiting", type=_whole(MAX_CHOICES), default=Limits.max_waiting, help="sequences queued before 503"
    )
    parser.add_argument(
        "--max-tokens", type=_whole(2), default=Limits.max_tokens, help="tokens of all running sequences"
    )
    parser.add_argument("--prefix-cache-mib", type=_whole(0), default=256, help="memory for shared prompts")
    parser.add_argument(
        "--memory-mib", type=_whole(0), default=0, help="memory for all weights and caches; 0 for no limit"
    )
    parser.add_argument(
        "--max-wait", type=_seconds, default=Limits.max_wait_seconds, help="seconds until a request must have begun"
    )
    parser.add_argument(
        "--max-seconds", type=_seconds, default=Limits.max_seconds, help="seconds until a request must have ended"
    )
    parser.add_argument(
        "--cache", type=Path, default=Options.cache, help="folder for the step compiled on this machine"
    )
    return parser


def _whole(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("-").isdecimal() or not least <= int(text) <= most:
            bounds = f"between {least} and {most}" if most < sys.maxsize else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no time: give seconds, more than 0")


def _refuse(message: str) -> int:
    print(f"engine: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
