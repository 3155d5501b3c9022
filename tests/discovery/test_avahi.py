"""Avahi, which most Linux machines run, and we see each other's services."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from announcing import fresh_name
from cabled import Cable, client, ip, needs_namespaces, server

PROGRAMS = ("avahi-daemon", "avahi-browse", "avahi-publish-service", "dbus-daemon")
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>
"""
DAEMON = """[server]
host-name=avahi-host
use-ipv4=yes
use-ipv6=no
[publish]
publish-workstation=no
"""
PIN = "sha256:" + "ab" * 32

pytestmark = [
    needs_namespaces,
    pytest.mark.skipif(
        any(shutil.which(each) is None for each in PROGRAMS)
        or Path("/run/avahi-daemon/pid").exists(),
        reason="needs avahi-daemon, avahi-utils and dbus, and no Avahi that runs already",
    ),
]


class Avahi:
    """The daemon in the first namespace, on a message bus of its own."""

    def __init__(self, cable: Cable, folder: Path) -> None:
        self._enter = ["ip", "netns", "exec", cable.spaces[0]]
        self._environment = {
            **os.environ,
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder / 'bus'}",
        }
        (folder / "bus.conf").write_text(BUS.format(path=folder / "bus"))
        (folder / "avahi.conf").write_text(DAEMON)
        self._running = [
            subprocess.Popen(
                ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork", "--nopidfile"]
            )
        ]
        while not (folder / "bus").exists():
            assert self._running[0].poll() is None
        self.start("avahi-daemon", "-f", str(folder / "avahi.conf"),
                   "--no-drop-root", "--no-rlimits", "--no-chroot")  # fmt: skip
        while self.run("avahi-browse", "-at").returncode:
            assert self._running[1].poll() is None

    def start(self, *words: str) -> None:
        self._running.append(
            subprocess.Popen(
                [*self._enter, *words],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def stop(self) -> None:
        for process in reversed(self._running):
            process.terminate()
            process.wait(20)


@pytest.fixture
def avahi(cable: Cable, tmp_path: Path) -> Iterator[Avahi]:
    for number, (space, link) in enumerate(zip(cable.spaces, cable.links, strict=True)):
        ip("-n", space, "addr", "add", f"10.77.0.{number + 1}/24", "dev", link)
    started = Avahi(cable, tmp_path)
    try:
        yield started
    finally:
        started.stop()


def test_we_see_what_avahi_announces(cable: Cable, avahi: Avahi, tmp_path: Path) -> None:
    name = fresh_name()
    txt = ["txtvers=1", f"fp={PIN}", "room=attic"]
    avahi.start("avahi-publish-service", name, "_echostream._udp", "4444", *txt)
    with client(cable, tmp_path, name=name, watch=True) as watching:
        found = watching.hear()
    assert found["addresses"] == ["10.77.0.1"]
    assert (found["port"], found["fingerprint"]) == (4444, PIN)


def test_avahi_sees_what_we_announce(cable: Cable, avahi: Avahi, tmp_path: Path) -> None:
    name = fresh_name()
    with server(cable, tmp_path, name, "0.0.0.0:0", side=1) as serving:
        serving.hear()
        listed = avahi.run("avahi-browse", "-rpt", "_echostream._udp").stdout
    resolved = [line for line in listed.splitlines() if line.startswith("=")]
    assert any(
        name.replace(" ", "\\032") in line and ";10.77.0.2;" in line and '"txtvers=1"' in line
        for line in resolved
    ), listed
