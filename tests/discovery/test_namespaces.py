"""Two processes in two network namespaces, joined by one cable: they find each other by name, by
IPv4 and by link-local IPv6 alone, follow changes of address, and by ticket without multicast.

Needs root and ``ip netns``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from announcing import fresh_name

CHILD = Path(__file__).with_name("namespace_child.py")
LIMIT_S = 40

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2",
)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Cable:
    """Namespaces ``a`` and ``b`` with one Ethernet link between them."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.spaces = [f"es{tag}a", f"es{tag}b"]
        self.links = [f"es{tag}0", f"es{tag}1"]

    def lay(self) -> None:
        first, second = self.links
        for space in self.spaces:
            ip("netns", "add", space)
        ip("link", "add", first, "type", "veth", "peer", "name", second)
        for space, link in zip(self.spaces, self.links, strict=True):
            ip("link", "set", link, "netns", space)
            self.run(space, "sysctl", "-qw", f"net.ipv6.conf.{link}.accept_dad=0")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", link, "up")

    def run(self, space: str, *words: str) -> None:
        subprocess.run(["ip", "netns", "exec", space, *words], check=False, capture_output=True)

    def cut(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


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


class Child:
    """The other program, in a namespace."""

    def __init__(self, space: str, home: Path, **task: object) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", space, sys.executable, "-W", "error", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ECHOSTREAM_HOME": str(home)},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**task, "limit": LIMIT_S}) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the other process ended"
        return json.loads(line)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # that ends it
        try:
            self._process.wait(LIMIT_S)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()


def server(cable: Cable, home: Path, name: str, bind: str) -> Child:
    return Child(cable.spaces[0], home / "server", role="serve", name=name, bind=bind)


def client(cable: Cable, home: Path, **task: object) -> Child:
    return Child(cable.spaces[1], home / "client", role="call", **task)


@pytest.mark.parametrize("family", ["ipv4", "link-local"])
def test_two_hosts_find_each_other(cable: Cable, family: str, tmp_path: Path) -> None:
    name = fresh_name()
    if family == "ipv4":
        for number, (space, link) in enumerate(zip(cable.spaces, cable.links, strict=True)):
            ip("-n", space, "addr", "add", f"10.77.0.{number + 1}/24", "dev", link)
    bind = "0.0.0.0:0" if family == "ipv4" else "[::]:0"
    # Both start at the same time: the client waits until the server is there.
    with server(cable, tmp_path, name, bind), client(cable, tmp_path, name=name) as calling:
        found = calling.hear()
    assert found["answer"] == "hello"
    assert found["address"].startswith("10.77.0.1" if family == "ipv4" else "fe80::")


def test_a_change_of_address_is_announced(cable: Cable, tmp_path: Path) -> None:
    name = fresh_name()
    (space, other), (link, far) = cable.spaces, cable.links
    ip("-n", other, "addr", "add", "10.77.0.2/16", "dev", far)
    ip("-n", space, "addr", "add", "10.77.0.1/24", "dev", link)
    with (
        server(cable, tmp_path, name, "0.0.0.0:0"),
        client(cable, tmp_path, name=name, watch=True) as watching,
    ):
        assert watching.hear()["addresses"] == ["10.77.0.1"]
        # Of another size, or Linux takes it away together with the first one.
        ip("-n", space, "addr", "add", "10.77.0.9/16", "dev", link)
        ip("-n", space, "addr", "del", "10.77.0.1/24", "dev", link)
        while "10.77.0.9" not in watching.hear()["addresses"]:
            pass
        with client(cable, tmp_path, name=name) as calling:
            assert calling.hear() == {"answer": "hello", "address": "10.77.0.9"}


def test_by_ticket_where_multicast_does_not_pass(cable: Cable, tmp_path: Path) -> None:
    (space, other), (link, far) = cable.spaces, cable.links
    ip("-n", space, "addr", "add", "10.77.0.1/24", "dev", link)
    ip("-n", other, "addr", "add", "10.77.0.2/24", "dev", far)
    for each, device in zip(cable.spaces, cable.links, strict=True):
        ip("-n", each, "link", "set", device, "multicast", "off")
    with server(cable, tmp_path, "Unheard", "0.0.0.0:5000") as serving:
        ticket = serving.hear()["ticket"]
        with client(cable, tmp_path, name="Unheard", ticket=ticket) as calling:
            assert calling.hear()["answer"] == "hello"
