"""Two processes in two network namespaces, joined by one cable: they find each other by name, by
IPv4 and by link-local IPv6 alone, follow changes of address, and by ticket without multicast.

Needs root and ``ip netns``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from announcing import fresh_name
from cabled import Cable, client, ip, needs_namespaces, server

pytestmark = needs_namespaces


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
