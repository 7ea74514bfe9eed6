"""A real HTTP server that keeps what is posted to it, and answers (or does not) as a test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Posted:
    """One request."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The document."""
        return json.loads(self.body)


class Receiver:
    """Listens on a free port. `answer` is the status of the next answers; 0: headers that drip for ever."""

    def __init__(self) -> None:
        self.posted: list[Posted] = []
        self.answer = 200
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address, with a token in it."""
        return f"http://127.0.0.1:{self._server.server_port}/hook?token=t0psecret"

    def changes(self) -> list[tuple[str, str]]:
        """(view, change) of all that was posted, in order."""
        return [(change["view"], change["change"]) for posted in self.posted for change in posted.json["changes"]]

    def close(self) -> None:
        """Stop listening."""
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.posted.append(Posted(target=self.path, headers=dict(self.headers), body=body))
            if receiver.answer:
                self.send_response(receiver.answer)
                if 300 <= receiver.answer < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                return
            while not receiver.released.wait(0.05):
                try:
                    self.wfile.write(b"H")
                except OSError:
                    return

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    return Handler


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that takes everything."""
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def dead_address() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook"
