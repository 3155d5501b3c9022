from typing_extensions import Buffer

__all__ = ["scan_payload"]

def scan_payload(
    data: Buffer,
    max_depth: int = 32,
    max_items: int = 65_536,
    exts: tuple[int, ...] = ...,
) -> int: ...
