"""A small HTTP/1.1 listener for probes and scrapers: QUIC is UDP, and they speak TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

__all__ = ["AdminServer"]

REQUEST_LIMIT = 8192
REQUEST_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 32

Page = Callable[[], tuple[int, str, str]]
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class AdminServer:
    """Answers GET and HEAD of ``pages`` (status, content type, body), one request per connection.

    Not for the Internet: it listens on loopback unless told otherwise, and has no TLS.
    """

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises ``OSError`` where that is impossible."""
        self._server = await asyncio.start_server(
            self._accept, host, port, limit=REQUEST_LIMIT, backlog=MAX_CONNECTIONS
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, once started."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        """Stop listening, and end what is being answered."""
        if self._server is not None:
            self._server.close()
            for writer in self._serving.values():
                writer.transport.abort()  # its task reads the end of the connection
            if self._serving:
                await asyncio.wait(tuple(self._serving))
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._serving) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._serving[task] = writer
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not HTTP, or gone
        finally:
            del self._serving[task]
            writer.close()

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        method, path = words[0], words[1].split("?")[0] if len(words) == 3 else ""
        page = self._pages.get(path)
        if method not in ("GET", "HEAD"):
            status, kind, body = 405, "text/plain", "GET or HEAD\n"
        elif page is None:
            status, kind, body = 404, "text/plain", "there are " + " ".join(self._pages) + "\n"
        else:
            status, kind, body = page()
        data = body.encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}; charset=utf-8\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else data)
