"""What is announced, and what is made of anything that others announce."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream import ConfigurationError, RpcServer
from echostream.discovery.service import (
    MAX_ADDRESSES,
    Announcement,
    Service,
    ranked,
    read_txt,
    service_from,
)

PIN = "sha256:" + "ab" * 32


def raw(txt: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in txt.items()}


def test_what_a_server_announces_is_read_back() -> None:
    said = Announcement(name="Küche ☕", properties={"room": "kitchen", "model": ""})
    txt = said.txt(id="0123456789abcdef", fingerprint=PIN)
    assert next(iter(txt.items())) == ("txtvers", "1")
    service = service_from("Küche ☕-2", 5000, ["10.0.0.1"], raw(txt))
    assert service == Service(
        name="Küche ☕",
        instance="Küche ☕-2",
        addresses=("10.0.0.1",),
        port=5000,
        fingerprint=PIN,
        id="0123456789abcdef",
        capabilities=("datagram", "ndarray", "resume"),
        properties={"room": "kitchen", "model": ""},
    )


@pytest.mark.parametrize(
    ("name", "properties", "said"),
    [
        ("", {}, "1 to 63 bytes"),
        ("x" * 64, {}, "1 to 63 bytes"),
        ("é" * 32, {}, "1 to 63 bytes"),
        ("a\nb", {}, "printable"),
        (" a", {}, "printable"),
        (7, {}, "by its name"),
        ("a", {"Room": "x"}, "a-z"),
        ("a", {"toolongkey": "x"}, "1 to 9"),
        ("a", {"fp": "x"}, "announced already"),
        ("a", {"room": "x" * 201}, "200 bytes"),
        ("a", {"room": 1}, "must be a text"),
        ("a", {f"k{i}": "x" * 200 for i in range(6)}, "1200"),
    ],
)
def test_what_cannot_be_announced(name: object, properties: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RpcServer.builder().enable_discovery(name, properties=properties)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("txt", "expected"),
    [
        ({}, {}),
        ({b"txtvers": b"1", b"proto": b"3", b"A": b"b"}, {"txtvers": "1", "proto": "3", "a": "b"}),
        ({b"txtvers": b"2"}, None),
        ({b"proto": b"0"}, None),
        ({b"proto": b"none"}, None),
        ({b"x": None, b"\xff": b"y", b"z": b"\xff", b"e": b"\x1b[2J"}, {}),
    ],
)
def test_txt_records(txt: dict, expected: dict | None) -> None:
    assert read_txt(txt) == expected


@pytest.mark.parametrize(
    ("txt", "field", "value"),
    [
        ({b"fp": b"sha256:cd"}, "fingerprint", None),
        ({b"fp": b"md5:" + b"ab" * 32}, "fingerprint", None),
        ({b"id": b"../../etc"}, "id", ""),
        ({b"name": b"other"}, "name", "other"),
        ({b"caps": b"," * 200}, "capabilities", ()),
    ],
)
def test_facts_that_are_wrong_are_not_facts(txt: dict, field: str, value: object) -> None:
    service = service_from("inst", 1, ["10.0.0.1"], txt)
    assert getattr(service, field) == value


@pytest.mark.parametrize(
    ("instance", "port", "addresses", "txt"),
    [
        ("a", 0, ["10.0.0.1"], {}),
        ("a", 65536, ["10.0.0.1"], {}),
        ("a\x1b[2J", 1, ["10.0.0.1"], {}),
        ("a", 1, [], {}),
        ("a", 1, ["224.0.0.1", "0.0.0.0", "255.255.255.255", "nonsense", "fe80::1"], {}),
        ("a", 1, ["10.0.0.1"], {b"name": b"x" * 70}),
        ("a", 1, ["10.0.0.1"], {b"txtvers": b"9"}),
    ],
)
def test_what_is_no_service(instance: str, port: int, addresses: list[str], txt: dict) -> None:
    assert service_from(instance, port, addresses, txt) is None


@pytest.mark.parametrize(
    ("addresses", "own", "expected"),
    [
        (["fe80::1%4", "192.168.1.5", "8.8.8.8", "fd00::2"], [],
         ("fd00::2", "192.168.1.5", "8.8.8.8", "fe80::1%4")),
        (["127.0.0.1", "10.0.0.1", "::1"], [], ("10.0.0.1",)),
        (["127.0.0.1"], [], ("127.0.0.1",)),
        (["::ffff:10.0.0.1", "10.0.0.1"], [], ("10.0.0.1",)),
        (["172.17.0.1", "10.0.0.9"], ["172.17.0.1", "10.0.0.1"], ("10.0.0.9",)),  # a bridge
        (["172.17.0.1", "10.0.0.1"], ["172.17.0.1", "10.0.0.1"], ("172.17.0.1", "10.0.0.1")),
        (["127.0.0.1", "10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ("10.0.0.1",)),
    ],
)  # fmt: skip
def test_addresses_in_the_order_in_which_they_are_tried(
    addresses: list[str], own: list[str], expected: tuple[str, ...]
) -> None:
    assert ranked(addresses, own) == expected


def test_no_more_addresses_than_can_be_tried() -> None:
    assert len(ranked(f"10.0.{i // 256}.{i % 256}" for i in range(1, 10_000))) == MAX_ADDRESSES


@given(
    st.text(max_size=80),
    st.integers(-1, 70_000),
    st.lists(st.ip_addresses().map(str) | st.text(max_size=20), max_size=40),
    st.dictionaries(st.binary(max_size=12), st.none() | st.binary(max_size=300), max_size=30),
)
def test_anything_may_be_announced(
    instance: str, port: int, addresses: list[str], txt: dict[bytes, bytes | None]
) -> None:
    service = service_from(instance, port, addresses, txt)
    if service is not None:
        shown = f"{service.name}{service.instance}{service.id}{service.properties}"
        assert shown.isprintable()
        assert 0 < len(service.addresses) <= MAX_ADDRESSES
        assert 0 < service.port <= 65535
