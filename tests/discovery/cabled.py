"""Two network namespaces with a cable between them, and a program of ours in each."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2",
)

CHILD = Path(__file__).with_name("namespace_child.py")
LIMIT_S = 40


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


def server(cable: Cable, home: Path, name: str, bind: str, *, side: int = 0) -> Child:
    return Child(cable.spaces[side], home / "server", role="serve", name=name, bind=bind)


def client(cable: Cable, home: Path, **task: object) -> Child:
    return Child(cable.spaces[1], home / "client", role="call", **task)
