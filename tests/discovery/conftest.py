"""Multicast on loopback has to work, and nothing of this user's files is touched."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cabled import Cable


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOSTREAM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ECHOSTREAM_SERVICES", raising=False)


@pytest.fixture
def multicast() -> None:
    """Skip where this machine's loopback carries no multicast."""
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        try:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            receiver.bind(("", 0))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            receiver.settimeout(2)
            sender.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            sender.sendto(b"heard?", ("224.0.0.251", receiver.getsockname()[1]))
            receiver.recv(16)
        except OSError as exc:
            pytest.skip(f"no multicast on loopback: {exc}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    laid = Cable()
    try:
        try:
            laid.lay()
        except RuntimeError as exc:
            pytest.skip(f"no network namespaces here: {exc}")
        yield laid
    finally:
        laid.cut()
