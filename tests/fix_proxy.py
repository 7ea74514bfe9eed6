"""A TCP proxy in a thread of its own, before a real server: it may speak TLS, cut a connection, change what passes."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable

import trustme

_CHUNK_BYTES = 1 << 16


def server_context(authority: trustme.CA, certificate: trustme.LeafCert) -> ssl.SSLContext:
    """TLS with this certificate, for clients that have one of the authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Proxy:
    """Listens on `port` from construction on and passes everything to `target_port` of this machine."""

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target_port, self._tls = target_port, tls
        #: Cut the connection after so many more bytes from the client, once.
        self.cut_after: int | None = None
        #: The same of the server's bytes.
        self.cut_answers_after: int | None = None
        #: What becomes of the server's bytes.
        self.change: Callable[[bytes], bytes] = bytes
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            first = await self._greet(reader, writer)
            answers, there = await asyncio.open_connection("127.0.0.1", self._target_port)
            there.write(first)
            forth = asyncio.ensure_future(self._forth(reader, there))
            back = asyncio.ensure_future(self._back(answers, writer))
            _, pending = await asyncio.wait({forth, back}, return_when=asyncio.FIRST_COMPLETED)
            for other in pending:
                other.cancel()
            await asyncio.gather(forth, back, return_exceptions=True)
        except OSError:
            pass  # the server is not there: the client finds its connection closed
        finally:
            self._tasks.discard(task)
            for side in (writer, there):
                if side is not None:
                    side.transport.abort()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """What happens before anything passes; returns bytes already read."""
        return b""

    async def _forth(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            left = self.cut_after
            if left is not None:
                self.cut_after = left - len(data) if left > len(data) else None
            there.write(data[:left])
            await there.drain()
            if left is not None and left <= len(data):
                return

    async def _back(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(_CHUNK_BYTES):
            left = self.cut_answers_after
            if left is not None:
                self.cut_answers_after = left - len(data) if left > len(data) else None
            writer.write(self.change(data)[:left])
            await writer.drain()
            if left is not None and left <= len(data):
                return


class PostgresProxy(Proxy):
    """Speaks TLS as a Postgres server does: once the client has asked for it, on the same connection.

    Source: the SSLRequest and GSSENCRequest messages of the Postgres protocol, 8 bytes each.
    """

    def __init__(self, target_port: int, certificate: trustme.LeafCert) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(self._context)
        super().__init__(target_port)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while True:
            asked = await reader.readexactly(8)
            match int.from_bytes(asked[4:], "big"):
                case 80877103:
                    writer.write(b"S")
                    await writer.drain()
                    await writer.start_tls(self._context)
                    return b""
                case 80877104:
                    writer.write(b"N")
                case _:
                    return asked
