"""Ports for servers that tests start."""

from __future__ import annotations

import secrets
import socket

#: Below those that systems give to outgoing connections and to who asks for any: nobody takes one of these between its
#: choice and the server's start, or while the server is down. A Cluster's nodes use the port 10,000 above as well.
_PORTS = range(10_000, 20_000)


def free_port() -> int:
    """A port that nobody listens on."""
    while True:
        # Not `random`: the tests' order plugin gives all workers the same seed.
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
