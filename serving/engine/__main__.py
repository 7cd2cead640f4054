"""`python -m serving.engine --model DIR`: serve a prepared model. The token comes from ENGINE_TOKEN."""

import argparse
import logging
import os
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn

from serving.engine.engine import Engine, Options, build
from serving.engine.model_folder import BrokenModel
from serving.engine.scheduler import Limits
from serving.engine.server import create_app

log = logging.getLogger("engine")

GIL_SECONDS = 0.0005  # the engine's thread must not wait 5 ms for the server's whenever it returns from a kernel
SHUTDOWN_SECONDS = 2


class Server(uvicorn.Server):
    """uvicorn, which ends the engine's requests when it is told to stop: open streams then end by themselves."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._engine.stop()
        super().handle_exit(sig, frame)


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
    limits = Limits(options.max_running, options.max_waiting, options.max_tokens)
    return Options(
        model=options.model,
        name=options.name,
        adapters=options.adapters,
        n_threads=options.threads,
        context=options.context,
        max_adapters=options.max_adapters,
        prefix_cache_bytes=options.prefix_cache_mib * 2**20,
        limits=limits,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.engine", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder made by serving.engine.prepare")
    parser.add_argument("--name", default="base", help="the model name of the base")
    parser.add_argument("--adapters", type=Path, help="folder below which adapters may be loaded from")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threads", type=int, default=0, help="cores to compute with; 0 for all")
    parser.add_argument(
        "--context", type=int, default=0, help="longest prompt with answer, in tokens; 0 for the model's"
    )
    parser.add_argument("--max-adapters", type=int, default=Options.max_adapters, help="adapters resident at once")
    parser.add_argument("--max-running", type=int, default=Limits.max_running, help="sequences computed at once")
    parser.add_argument("--max-waiting", type=int, default=Limits.max_waiting, help="sequences queued before 503")
    parser.add_argument("--max-tokens", type=int, default=Limits.max_tokens, help="tokens of all running sequences")
    parser.add_argument("--prefix-cache-mib", type=int, default=256, help="memory for shared prompts")
    return parser


def _refuse(message: str) -> int:
    print(f"engine: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
