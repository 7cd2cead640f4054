"""A Celery broker that is a folder: kombu's virtual transport over files, for one machine with nothing installed.

kombu ships such a transport, but it writes messages in place (a reader may see half of one) and forgets a message when
its reader dies before acknowledging it. Here a message is always a whole file, and lies in exactly one place:

    FOLDER/writing/NAME               being written
    FOLDER/queue/QUEUE/NAME           waiting
    FOLDER/processed/CHANNEL/…        taken by a consumer and not acknowledged yet
    FOLDER/processed/CHANNEL.lock     locked while that consumer lives

Each step from one place to the next is one rename, which the file system makes atomic: of two consumers that reach for
a message, one gets it and the other gets FileNotFoundError. Messages of a dead consumer go back to their queue when the
next consumer starts. Remote control, gossip and events need fanout exchanges, which this transport does not have.
"""

import fcntl
import json
import logging
import os
import time
import uuid
from collections import deque
from functools import cached_property
from pathlib import Path
from queue import Empty
from typing import IO, Any
from urllib.parse import quote, unquote

from kombu.transport import virtual

logger = logging.getLogger(__name__)


class Channel(virtual.Channel):
    """One producer's or consumer's view of the folder. Unacknowledged messages are files, so a crash loses none."""

    do_restore = False  # kombu would write copies of what we keep as files

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.folder = Path(connection.client.transport_options["folder"])
        self._listings: dict[str, deque[str]] = {}
        self._taken: dict[str, Path] = {}  # delivery tag → file
        self._lock: IO[str] | None = None

    # --- queues ------------------------------------------------------------------------------------------------------
    def _queue_folder(self, queue: str) -> Path:
        folder = self.folder / "queue" / quote(queue, safe="")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Write, then rename: whoever lists the queue sees whole messages only."""
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}.msg"
        writing = self.folder / "writing"
        writing.mkdir(parents=True, exist_ok=True)
        (writing / name).write_text(json.dumps(message))
        (writing / name).rename(self._queue_folder(queue) / name)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        """Take the oldest message, or raise Empty. The listing is read again only when it is used up."""
        folder, taken_folder = self._queue_folder(queue), self._taken_folder
        names = self._listings.get(queue) or self._list(queue)
        while names:
            name = names.popleft()
            taken = taken_folder / f"{quote(queue, safe='')}@{name}"
            try:
                (folder / name).rename(taken)
            except FileNotFoundError:
                continue  # another consumer was faster
            try:
                message = json.loads(taken.read_text())
            except ValueError:
                logger.warning("Dropped the message %s, whose file is damaged (a power cut does that).", taken.name)
                taken.unlink()
                continue
            self._taken[message["properties"]["delivery_tag"]] = taken
            return message
        raise Empty

    def _list(self, queue: str) -> deque[str]:
        names = self._listings[queue] = deque(sorted(os.listdir(self._queue_folder(queue))))
        return names

    def _size(self, queue: str) -> int:
        return len(os.listdir(self._queue_folder(queue)))

    def _purge(self, queue: str) -> int:
        names = self._list(queue)
        for name in names:
            (self._queue_folder(queue) / name).unlink(missing_ok=True)
        return len(names)

    # --- messages that were taken ------------------------------------------------------------------------------------
    @cached_property
    def _taken_folder(self) -> Path:
        """This consumer's folder, made under its lock, after the messages of dead consumers were put back."""
        processed = self.folder / "processed"
        processed.mkdir(parents=True, exist_ok=True)
        put_back_of_dead_consumers(self.folder)
        name = uuid.uuid4().hex
        # The lock comes first: a folder without a locked file next to it belongs to a dead consumer.
        self._lock = (processed / f"{name}.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        folder = processed / name
        folder.mkdir()
        return folder

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        super().basic_ack(delivery_tag, multiple)
        self._forget(delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        super().basic_reject(delivery_tag, requeue=requeue)  # requeueing writes a new message
        self._forget(delivery_tag)

    def _forget(self, delivery_tag: str) -> None:
        taken = self._taken.pop(delivery_tag, None)
        if taken is not None:
            taken.unlink(missing_ok=True)

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str | None, **kwargs: Any) -> Any:
        if no_ack:
            raise NotImplementedError("Messages in files are always acknowledged: consume with no_ack=False.")
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def close(self) -> None:
        super().close()
        if self._lock is not None:
            _put_back(self.folder, self._taken_folder)
            self._lock.close()
            self._lock = None


def put_back_of_dead_consumers(folder: Path) -> int:
    """Move what dead consumers had taken back to its queue; returns how many messages that were."""
    n_messages = 0
    for path in (folder / "processed").glob("*.lock"):
        try:
            with path.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                n_messages += _put_back(folder, path.with_suffix(""))
        except (FileNotFoundError, BlockingIOError):
            continue  # put back by another consumer just now, or alive
    return n_messages


def _put_back(folder: Path, taken_folder: Path) -> int:
    """The caller holds the lock of `taken_folder`, and no longer needs it."""
    names = os.listdir(taken_folder) if taken_folder.exists() else []
    for taken in names:
        queue, _, name = taken.partition("@")
        queue_folder = folder / "queue" / quote(unquote(queue), safe="")
        queue_folder.mkdir(parents=True, exist_ok=True)
        (taken_folder / taken).rename(queue_folder / name)
    if taken_folder.exists():
        taken_folder.rmdir()
    taken_folder.with_suffix(".lock").unlink(missing_ok=True)
    return len(names)


class Transport(virtual.Transport):
    """`files://` with the transport options `folder` and `polling_interval` (seconds)."""

    Channel = Channel
    implements = virtual.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "topic"]), heartbeats=False
    )
    default_port = 0
    driver_type = driver_name = "files"

    def driver_version(self) -> str:
        return "1"
