from typing import Any, TypeAlias, final

__all__ = ["BatchSocket"]

_Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

@final
class BatchSocket:
    def __new__(
        cls,
        fd: int,
        family: int,
        *,
        join: bool = True,
        cut: bool = True,
        marks: tuple[type[tuple[Any, ...]], ...] | None = None,
    ) -> BatchSocket: ...
    @property
    def error(self) -> int: ...
    @property
    def joins(self) -> bool: ...
    @property
    def cuts(self) -> bool: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    def receive(self, limit: int) -> list[tuple[bytes, _Address]]: ...
    def send(self, datagrams: list[tuple[bytes, _Address]], start: int = 0) -> int: ...
