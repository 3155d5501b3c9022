"""Tickets: text and back, and anything that only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream import ConfigurationError, RpcClient
from echostream.transport.ticket import MAX_ADDRESSES, MAX_LENGTH, Ticket

PIN = "sha256:" + "0123456789abcdef" * 4
DIGITS = PIN.removeprefix("sha256:")

hosts = (
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str)
    | st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,8}){0,2}", fullmatch=True)
)
texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40)
tickets = st.builds(
    Ticket,
    st.lists(st.tuples(hosts, st.integers(1, 65535)), min_size=1, max_size=8).map(tuple),
    st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex()),
    name=texts,
    token=texts,
)


@given(tickets)
def test_a_ticket_is_read_back(ticket: Ticket) -> None:
    text = str(ticket)
    assert Ticket.parse(text) == ticket
    assert Ticket.parse(f"  {text}\n") == ticket
    assert text.isascii()
    assert len(text) <= MAX_LENGTH


def test_how_it_looks() -> None:
    ticket = Ticket((("192.168.1.5", 5000), ("FD00::2", 5000)), PIN, name="living room")
    assert str(ticket) == (
        f"echostream://{DIGITS}@192.168.1.5:5000,[fd00::2]:5000?name=living%20room"
    )
    shouted = f"echostream://SHA256:{DIGITS.upper()}@Host.Example:1/?new=thing"
    with pytest.raises(ConfigurationError):
        Ticket.parse(shouted)
    assert Ticket.parse(shouted.replace("SHA256", "sha256")) == Ticket((("host.example", 1),), PIN)
    assert "hunter2" not in repr(Ticket((("a", 1),), PIN, token="hunter2"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "echostream://",
        f"echostream://{DIGITS}",
        f"echostream://{DIGITS}@",
        f"echostream://{DIGITS}@host",
        f"echostream://{DIGITS}@host:0",
        f"echostream://{DIGITS}@host:65536",
        f"echostream://{DIGITS}@host:1,",
        f"echostream://{DIGITS}@::1:5000",
        f"echostream://{DIGITS}@[fe80::1%25eth0]:5000",
        f"echostream://{DIGITS}@-bad..name:5000",
        f"echostream://{DIGITS}@h\u0000st:5000",
        f"echostream://{DIGITS}@host:١",
        f"echostream://{DIGITS[:-1]}@host:1",
        f"echostream://{DIGITS[:-1]}g@host:1",
        f"https://{DIGITS}@host:1",
        f"echostream://{DIGITS}@host:1?name=%ff",
        f"echostream://{DIGITS}@host:1?name=%0a",
        f"echostream://{DIGITS}@" + ",".join(["h:1"] * (MAX_ADDRESSES + 1)),
        f"echostream://{DIGITS}@host:1?name=" + "x" * 513,
        f"echostream://{DIGITS}@host:1?x=" + "x" * MAX_LENGTH,
    ],
)
def test_what_is_no_ticket(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Ticket.parse(text)


@given(st.text(max_size=200) | st.text(max_size=200).map(f"echostream://{DIGITS}@".__add__))
def test_hostile_text_is_refused_or_is_a_ticket(text: str) -> None:
    try:
        ticket = Ticket.parse(text)
    except ConfigurationError:
        return
    assert Ticket.parse(str(ticket)) == ticket


def test_an_error_does_not_tell_the_token() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Ticket.parse(f"echostream://{DIGITS}@host?token=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "trust", [{"fingerprint": "sha256:" + "ff" * 32}, {"insecure": True}, {"ca": b"x"}]
)
def test_a_ticket_is_not_talked_out_of_its_key(trust: dict) -> None:
    ticket = f"echostream://{DIGITS}@host:1"
    with pytest.raises(ConfigurationError):
        RpcClient.connect(ticket, **trust)
    with pytest.raises(ConfigurationError):
        RpcClient.builder().connect(ticket).trust(**trust)
    kept = RpcClient.builder().connect(ticket).trust(fingerprint=None, insecure=False).build()
    assert kept._config.trust.fingerprint == PIN
