"""Files over streaming calls: with progress, a checksum, and resumption from where it stopped.

::

    builder.handler("upload", FileStore("uploads").receive)
    builder.handler("fetch", FileStore("public").send)

    await send_file(client, "upload", "song.flac", progress=print)
    await fetch_file(client, "fetch", "song.flac", "copy.flac")
    async with open_remote(client, "fetch", "song.flac") as file:
        head = await file.read(1000)

What arrives goes to ``NAME.part`` and becomes ``NAME`` when size and SHA-256 are right. A transfer
that broke off goes on after what is in ``NAME.part``; the checksum is over the whole file, so that
a part of another version is found out (``DATA_LOSS``) and removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from echostream.codes import Status
from echostream.errors import ConfigurationError, InvalidPayload, ResourceExhausted, RpcError
from echostream.rpc.caller import Caller
from echostream.rpc.streamed import ResultStream

__all__ = ["FileInfo", "FileStore", "RemoteFile", "fetch_file", "open_remote", "send_file"]

CHUNK = 64 * 1024
MAX_NAME = 200
Progress = Callable[[int, int], object]
"""Called with the bytes that are done, from the beginning of the file, and its size."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file that was transferred. ``resumed``: bytes that were there before."""

    name: str
    size: int
    sha256: str
    resumed: int


class FileStore:
    """A directory that files are received into and sent from: two handlers.

    Names are those of files in ``directory`` itself: no separators, none that begins with a dot.
    A file that is there is replaced when another one of its name has arrived completely, and is
    refused above ``max_size`` bytes. Two transfers of one name at once: the second is refused.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_size: int = 1 << 32) -> None:
        self._directory = Path(directory)
        self._max_size = max_size
        self._receiving: set[str] = set()
        if not self._directory.is_dir():
            raise ConfigurationError(f"FileStore: {str(directory)!r} is no directory")

    async def receive(self, parts: AsyncIterator[Any]) -> AsyncIterator[dict[str, Any]]:
        """The handler that :func:`send_file` calls."""
        head = await anext(parts, None)
        name, size = _field(head, "name", str), _field(head, "size", int)
        path = self._path(name)
        if not 0 <= size <= self._max_size:
            raise ResourceExhausted(f"limit max_size={self._max_size}: the file has {size} bytes")
        if name in self._receiving:
            raise RpcError(f"{name!r} is being received already", status=Status.ABORTED)
        self._receiving.add(name)
        try:
            partial = await asyncio.to_thread(_Partial.open, path)
            try:
                yield {"offset": partial.begin(size)}
                async for part in parts:
                    if isinstance(part, bytes):
                        await partial.write(part, size)
                    else:
                        digest = _field(part, "sha256", str)
                        resumed = await partial.finish(size, digest)
                        yield {"size": size, "sha256": digest, "offset": resumed}
                        return
                raise InvalidPayload("the file ended without its checksum")
            finally:
                await asyncio.to_thread(partial.close)
        finally:
            self._receiving.discard(name)

    async def send(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        """The handler that :func:`fetch_file` and :func:`open_remote` call."""
        path = self._path(_field(request, "name", str))
        offset = _field(request, "offset", int)
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except OSError:
            raise RpcError(f"there is no file {path.name!r}", status=Status.NOT_FOUND) from None
        with file:
            size = os.fstat(file.fileno()).st_size
            if not 0 <= offset <= size:
                raise RpcError(
                    f"offset {offset} of {size} bytes", status=Status.OUT_OF_RANGE, details=size
                )
            digest = hashlib.sha256()
            yield {"size": size}
            async for chunk in _chunks(file, digest, offset):
                yield chunk
            yield {"sha256": digest.hexdigest()}

    def _path(self, name: str) -> Path:
        if (
            not 0 < len(name.encode()) <= MAX_NAME
            or name.startswith(".")
            or name.endswith(".part")
            or any(character in name for character in '/\\:\0<>"|?*')
        ):
            raise InvalidPayload(f"{name[:MAX_NAME]!r} cannot be the name of a file here")
        return self._directory / name


async def send_file(
    caller: Caller,
    method: str,
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    progress: Progress | None = None,
    timeout: float | None = None,
) -> FileInfo:
    """Send a file to the handler ``method`` (:meth:`FileStore.receive`), from where an earlier
    attempt stopped. Raises ``OSError`` for the local file, ``RpcError`` as ``request``."""
    path = Path(source)
    name = path.name if name is None else name
    with await asyncio.to_thread(path.open, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256()
        offset: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def parts() -> AsyncIterator[Any]:
            yield {"name": name, "size": size}
            done = await offset
            async for chunk in _chunks(file, digest, done):
                yield chunk
                done += len(chunk)
                if progress is not None:
                    progress(done, size)
            yield {"sha256": digest.hexdigest()}

        async with caller.request_stream(method, parts(), timeout=timeout) as answers:
            start = _field(await anext(answers, None), "offset", int)
            offset.set_result(min(max(start, 0), size))
            end = await anext(answers, None)
            return FileInfo(name, size, _field(end, "sha256", str), _field(end, "offset", int))


async def fetch_file(
    caller: Caller,
    method: str,
    name: str,
    target: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    timeout: float | None = None,
) -> FileInfo:
    """Fetch a file from the handler ``method`` (:meth:`FileStore.send`) into ``target``, going on
    after what an earlier attempt left in ``target.part``. Errors as for :func:`send_file`."""
    partial = await asyncio.to_thread(_Partial.open, Path(target))
    try:
        request = {"name": name, "offset": partial.offset}
        async with caller.request_stream(method, request, timeout=timeout) as parts:
            try:
                size = _field(await anext(parts, None), "size", int)
            except RpcError as exc:
                if exc.status == Status.OUT_OF_RANGE:  # what is here is longer: another file
                    await asyncio.to_thread(partial.discard)
                raise
            partial.begin(size)
            async for part in parts:
                if isinstance(part, bytes):
                    await partial.write(part, size)
                    if progress is not None:
                        progress(partial.size, size)
                else:
                    digest = _field(part, "sha256", str)
                    resumed = await partial.finish(size, digest)
                    return FileInfo(name, size, digest, resumed)
        raise InvalidPayload("the file ended without its checksum")
    finally:
        await asyncio.to_thread(partial.close)


def open_remote(
    caller: Caller, method: str, name: str, *, offset: int = 0, timeout: float | None = None
) -> RemoteFile:
    """A file of the other side (:meth:`FileStore.send`), to be read from ``offset``; nothing is
    stored here. ``async with`` it."""
    request = {"name": name, "offset": offset}
    return RemoteFile(caller.request_stream(method, request, timeout=timeout), offset)


class RemoteFile:
    """Reads a remote file in order. Where it is read from the beginning to the end, its checksum is
    compared at the end."""

    def __init__(self, parts: ResultStream[Any], offset: int) -> None:
        self._parts = parts
        self._digest = None if offset else hashlib.sha256()
        self._buffer = bytearray()
        self._ended = False
        self.size = -1
        """Size in bytes, known after the first read."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read(CHUNK):
            yield chunk

    async def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, all of the rest where it is negative; empty at the end."""
        while not self._ended and (size < 0 or len(self._buffer) < size):
            await self._fill()
        count = len(self._buffer) if size < 0 else size
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def read_all(self, limit: int = 64 * 1024 * 1024) -> bytes:
        """The rest. Raises ``ResourceExhausted`` above ``limit`` bytes, before it is read."""
        if self.size < 0 and not self._ended:
            await self._fill()
        if self.size > limit:
            raise ResourceExhausted(f"limit={limit}: the file has {self.size} bytes")
        return await self.read()

    async def close(self) -> None:
        """End the transfer. Idempotent."""
        self._ended = True
        await self._parts.aclose()

    async def _fill(self) -> None:
        part = await anext(self._parts, None)
        if isinstance(part, bytes):
            self._buffer += part
            if self._digest is not None:
                self._digest.update(part)
        elif self.size < 0:
            self.size = _field(part, "size", int)
        else:
            self._ended = True
            digest = _field(part, "sha256", str)
            if self._digest is not None and self._digest.hexdigest() != digest:
                raise RpcError("the checksum does not fit the file", status=Status.DATA_LOSS)


class _Partial:
    """``NAME.part``: what is there of a file, and its hash."""

    def __init__(self, path: Path, file: BinaryIO, digest: Any, offset: int) -> None:
        self._path = path
        self._file = file
        self._digest = digest
        self.offset = self.size = offset

    @classmethod
    def open(cls, path: Path) -> _Partial:
        file = path.with_name(path.name + ".part").open("a+b")
        file.seek(0)
        digest = hashlib.sha256()
        offset = 0
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            offset += len(chunk)
        return cls(path, file, digest, offset)

    def begin(self, size: int) -> int:
        """Where to go on; from the beginning if this cannot be a part of that."""
        if self.offset > size:
            self._file.truncate(0)
            self._digest = hashlib.sha256()
            self.offset = self.size = 0
        return self.offset

    async def write(self, chunk: bytes, size: int) -> None:
        if self.size + len(chunk) > size:
            raise InvalidPayload(f"more than the {size} bytes that were announced")
        self.size += len(chunk)
        await asyncio.to_thread(self._append, chunk)

    def _append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)

    async def finish(self, size: int, digest: str) -> int:
        """Give the file its name, if it is complete; how much of it was there before."""
        if self.size != size or self._digest.hexdigest() != digest:
            await asyncio.to_thread(self.discard)
            raise RpcError(
                "size or checksum do not fit: what had arrived is removed", status=Status.DATA_LOSS
            )
        await asyncio.to_thread(self._rename)
        return self.offset

    def _rename(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self._path)

    def discard(self) -> None:
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Keep what is there; nothing is kept of nothing."""
        if not self._file.closed:
            self._file.close()
            if self.size == 0:
                Path(self._file.name).unlink(missing_ok=True)


async def _chunks(file: BinaryIO, digest: Any, offset: int) -> AsyncIterator[bytes]:
    """The file from ``offset`` on; ``digest`` takes all of it."""
    done = 0
    while chunk := await asyncio.to_thread(file.read, CHUNK):
        digest.update(chunk)
        done += len(chunk)
        if done > offset:
            yield chunk[max(len(chunk) - (done - offset), 0) :]


def _field(value: Any, key: str, kind: type) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise InvalidPayload(f"a file transfer wants {key!r} here, a {kind.__name__}")
    return found
