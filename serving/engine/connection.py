"""One client's connection: what a client may take its time with, and how many there may be.

uvicorn bounds the size of headers, and the time between two requests. A client that sends half a request or reads half
an answer would keep its connection, and what belongs to it, for ever.
"""

import asyncio
import json

from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.engine.fields import error

MAX_CONNECTIONS = 2048
HEADER_SECONDS = 10.0  # from the first byte of a request to the end of its headers
UNREAD_SECONDS = 30.0  # that an answer may wait for its reader, with the socket's buffers full


class Connection(H11Protocol):
    """uvicorn's protocol with time limits for both directions."""

    _headers_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None  # only the reader's reading stops it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever the socket does not take waits for the reader
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, "Too many connections.")
        else:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting_for_headers()
        self._stop_waiting_for_reader()
        self._unset_keepalive_if_required()  # uvicorn keeps what was reset until this timer would have ended it
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting_for_headers()
        elif self._headers_timer is None:
            self._wait_for_headers()

    def on_response_complete(self) -> None:
        self._stop_waiting_for_headers()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting_for_reader()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting_for_reader()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "This is not a valid HTTP request.")

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(error(message, status)).encode()
        head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}Retry-After: 2\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def _wait_for_headers(self) -> None:
        self._headers_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_waiting_for_headers(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _stop_waiting_for_reader(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
