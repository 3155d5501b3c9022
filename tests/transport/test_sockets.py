"""Both ways to read and write a UDP socket: the same calls, the same results."""

import errno
import os
import random
import socket

import pytest

from echostream.transport.engine import CeAddress, Ect0Address, Ect1Address
from echostream.transport.sockets import PlainSocket, datagram_socket

batches = pytest.importorskip("echostream._ext.udp_batch", reason="only on Linux, and compiled")
BatchSocket = batches.BatchSocket

KINDS = {
    "plain": PlainSocket,
    "batches": lambda sock: BatchSocket(sock.fileno(), sock.family, join=False, cut=False),
    "cutting": lambda sock: BatchSocket(sock.fileno(), sock.family, join=False),
    "joining": lambda sock: BatchSocket(sock.fileno(), sock.family),
}
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


FAMILIES = [
    socket.AF_INET,
    pytest.param(socket.AF_INET6, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
]


@pytest.fixture
def bound():
    """Makes bound, non-blocking sockets."""
    made = []

    def bound(family=socket.AF_INET, host=None):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        made.append(sock)
        sock.bind((HOSTS[family] if host is None else host, 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return sock

    yield bound
    for sock in made:
        sock.close()


def address_of(sock):
    return sock.getsockname()


def all_of(receiver):
    taken = []
    while batch := receiver.receive(50):
        taken += batch
    return taken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sent_arrives_in_order_with_its_sender(bound, kind, family):
    rng = random.Random(7)
    here, there, other = bound(family), bound(family), bound(family)
    sender, receiver, third = (KINDS[kind](sock) for sock in (here, there, other))
    lengths = [100] * 70 + [99] + [1200] * 20 + [1201, 3, 3, 2, 0, 0, 5, 1, 60_000, 60_000, 8]
    lengths += [rng.choice((40, 40, 40, 39, 1200)) for _ in range(100)]
    datagrams = [
        (rng.randbytes(length), address_of(rng.choice((there, there, there, other))))
        for length in lengths
    ]
    assert sender.send(datagrams) == len(datagrams)
    assert sender.error == 0
    assert sender.bytes_sent == sum(lengths)
    for sock, reader in ((there, receiver), (other, third)):
        expected = [data for data, to in datagrams if to == address_of(sock)]
        taken = all_of(reader)
        assert reader.error == 0
        assert [data for data, _ in taken] == expected
        assert {address for _, address in taken} == {address_of(here)}
        assert reader.bytes_received == sum(map(len, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_bounds_what_is_read_at_once(bound, kind):
    here, there = bound(), bound()
    sender, receiver = KINDS[kind](here), KINDS[kind](there)
    sender.send([(bytes([n % 7]) * (50 + n % 2), address_of(there)) for n in range(300)])
    first = receiver.receive(10)
    assert 10 <= len(first) < 20
    assert len(first) + len(all_of(receiver)) == 300
    sender.send([(bytes(20), address_of(there))] * 2000)  # trains of 64
    first = receiver.receive(10)
    assert 10 <= len(first) < 10 + 512
    assert len(first) + len(all_of(receiver)) == 2000
    assert receiver.receive(10) == []
    assert receiver.error == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_names_its_datagram_and_the_rest_can_be_sent(bound, kind):
    here, there = bound(), bound()
    here.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: DO
    sender, receiver = KINDS[kind](here), KINDS[kind](there)
    to = address_of(there)
    datagrams = [(b"a", to), (b"b", to), (bytes(65_530), to), (bytes(65_530), to), (b"c", to)]
    assert sender.send(datagrams) == 2
    assert sender.error == errno.EMSGSIZE
    assert sender.send(datagrams, 3) == 3
    assert sender.error == errno.EMSGSIZE
    assert sender.send(datagrams, 4) == 5
    assert sender.error == 0
    assert [data for data, _ in all_of(receiver)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("address", [("::1", 9), ("name.invalid", 9), ("127.0.0.1", 70_000), None])
def test_an_address_that_cannot_be_is_an_error_of_its_datagram(bound, address):
    here, there = bound(), bound()
    sender = BatchSocket(here.fileno(), here.family)
    assert sender.send([(b"a", address_of(there)), (b"b", address)]) == 1
    assert sender.error == errno.EINVAL


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_the_network_is_an_error_of_a_call(bound, kind):
    here, there, closed = bound(), bound(), bound()
    here.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    nobody = address_of(closed)
    closed.close()
    sender, receiver = KINDS[kind](here), KINDS[kind](there)
    assert sender.send([(b"x", nobody)]) == 1
    assert sender.receive(10) == []
    assert sender.error == errno.ECONNREFUSED
    assert sender.send([(b"y", address_of(there))]) == 1
    assert [data for data, _ in all_of(receiver)] == [b"y"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_socket_is_an_error(bound, kind):
    here = bound()
    sock = KINDS[kind](here)
    descriptor = here.fileno()
    here.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)  # nobody has taken the number meanwhile
    assert sock.receive(1) == []
    assert sock.error == errno.EBADF
    assert sock.send([(b"a", ("127.0.0.1", 9))]) == 0
    assert sock.error == errno.EBADF


def test_more_addresses_than_are_remembered(bound):
    """Senders and receivers are looked up in tables of a fixed size."""
    there = bound()
    receiver = BatchSocket(there.fileno(), there.family)
    socks = [bound() for _ in range(40)]
    for round_ in range(2):
        for n, sock in enumerate(socks):
            sock.sendto(bytes([n, round_]), address_of(there))
        taken = all_of(receiver)
        assert [address for _, address in taken] == [address_of(sock) for sock in socks]
    sender = BatchSocket(there.fileno(), there.family)
    many = [(b"m", ("127.0.0.1", port)) for port in range(20_000, 25_000)]
    for start in range(0, len(many), 100):  # most are refused: it is the table that is filled
        at = 0
        while at < 100:
            at = sender.send(many[start : start + 100], at) + (sender.error != 0)
    assert sender.send([(b"end", address_of(socks[0]))]) + (sender.error != 0) >= 1


@pytest.mark.parametrize("bad", [None, [(b"a",)], [("text", ("127.0.0.1", 9))]])
def test_what_is_no_list_of_datagrams_is_refused(bound, bad):
    sock = bound()
    with pytest.raises((TypeError, ValueError)):
        BatchSocket(sock.fileno(), sock.family).send(bad)


def test_batches_are_chosen_where_they_can_be(bound, monkeypatch):
    sock = bound()
    monkeypatch.delenv("ECHOSTREAM_BATCH", raising=False)
    assert isinstance(datagram_socket(sock), BatchSocket)
    monkeypatch.setenv("ECHOSTREAM_BATCH", "0")
    assert isinstance(datagram_socket(sock), PlainSocket)
    with pytest.raises(ValueError, match="family"):
        BatchSocket(sock.fileno(), socket.AF_UNIX)


MARKS = (Ect1Address, Ect0Address, CeAddress)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["batches", "cutting", "joining"])
def test_marks_leave_and_arrive_with_their_datagrams(bound, kind, family):
    """Trains of one mark each; who reads without marks sees plain addresses."""
    options = {"batches": {"join": False, "cut": False}, "cutting": {"join": False}, "joining": {}}
    here, there, blind = bound(family), bound(family), bound(family)
    sender = BatchSocket(here.fileno(), family, marks=MARKS, **options[kind])
    receiver = BatchSocket(there.fileno(), family, marks=MARKS, **options[kind])
    plain = address_of(there)
    marked = Ect0Address(plain)
    sent = [(bytes([n]) * 100, marked if n // 5 % 3 else plain) for n in range(60)]
    assert sender.send(sent) == len(sent)
    got = all_of(receiver)
    assert [data for data, _ in got] == [data for data, _ in sent]
    assert [type(address) for _, address in got] == [type(address) for _, address in sent]
    assert {address for _, address in got} == {address_of(here)}
    other = Ect0Address(address_of(blind))
    for writer in (sender, PlainSocket(here)):
        assert writer.send([(b"x", other)]) == 1
        assert [type(address) for _, address in all_of(PlainSocket(blind))] == [tuple]


@pytest.mark.parametrize("mark", [0, 1, 2, 3])
def test_every_mark_is_told_apart(bound, mark):
    here, there = bound(), bound()
    here.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x88 | mark)
    receiver = BatchSocket(there.fileno(), socket.AF_INET, marks=MARKS)
    here.sendto(b"x", address_of(there))
    ((_, address),) = all_of(receiver)
    assert address == address_of(here)
    assert type(address) is (tuple, *MARKS)[mark]


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_a_dual_stack_socket_marks_and_sees_marks_of_both(bound):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        sock.setblocking(False)
        dual = BatchSocket(sock.fileno(), socket.AF_INET6, marks=MARKS)
        for family in (socket.AF_INET, socket.AF_INET6):
            peer = bound(family)
            ends = BatchSocket(peer.fileno(), family, marks=MARKS)
            port = address_of(sock)[1]
            target = ("127.0.0.1", port) if family == socket.AF_INET else ("::1", port, 0, 0)
            ends.send([(b"x", Ect0Address(target))])
            ((_, address),) = all_of(dual)
            assert type(address) is Ect0Address
            dual.send([(b"y", address)])
            ((_, address),) = all_of(ends)
            assert type(address) is Ect0Address


def test_marks_are_three(bound):
    with pytest.raises(ValueError, match="three"):
        BatchSocket(bound().fileno(), socket.AF_INET, marks=(tuple,))
