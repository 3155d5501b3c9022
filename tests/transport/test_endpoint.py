"""The endpoint on real loopback sockets, on asyncio and on uvloop."""

import asyncio
import errno
import socket
import sys
from pathlib import Path

import pytest
from scripted_engine import EchoAcceptor, EchoEngine, Recorder, ScriptedEngine, until

from echostream.errors import ConfigurationError
from echostream.transport import endpoint as endpoint_module
from echostream.transport.addresses import display_address, parse_address
from echostream.transport.endpoint import Endpoint
from echostream.transport.engine import Closed, DatagramReceived
from echostream.transport.routing import destination_connection_id
from echostream.transport.sockets import datagram_socket

try:
    import uvloop

    LOOPS = {"asyncio": None, "uvloop": uvloop.new_event_loop}
except ImportError:
    LOOPS = {"asyncio": None}

BOUND = 10.0
"""Seconds after which a test that hangs fails."""


@pytest.fixture(params=["1", "0"], ids=["batches", "plain"])
def sockets(request, monkeypatch):
    """Both ways to read and write a socket."""
    monkeypatch.setenv("ECHOSTREAM_BATCH", request.param)


@pytest.fixture(params=LOOPS)
def run(request, sockets):
    """Run a coroutine, bounded, on each loop, with each kind of socket."""

    def run(main):
        async def bounded():
            async with asyncio.timeout(BOUND):
                return await main

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(bounded())

    return run


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")


class Server:
    """A listening endpoint with a recorder per connection."""

    def __init__(self, **options):
        self.acceptor = EchoAcceptor(**options)
        self.handlers = []

    async def bind(self, address="127.0.0.1:0"):
        self.endpoint = await Endpoint.bind(
            address, acceptor=self.acceptor, on_connection=self.on_connection
        )
        return self.endpoint

    def on_connection(self, connection):
        self.handlers.append(Recorder())
        return self.handlers[-1]


async def wait_for(recorder, count):
    """Until the recorder has ``count`` datagrams."""
    changed = asyncio.Event()
    recorder.on_event = lambda event: changed.set()
    while sum(type(event) is DatagramReceived for event in recorder.events) < count:
        changed.clear()
        await changed.wait()
    return [event.data for event in recorder.events if type(event) is DatagramReceived]


async def echo(address, client_address, count=5):
    server = Server()
    listening = await server.bind(address)
    client = await Endpoint.bind(client_address)
    host = "::1" if client.family == socket.AF_INET6 else "127.0.0.1"
    resolved = socket.getaddrinfo(host, listening.address[1], type=socket.SOCK_DGRAM)[0][4]
    connection = client.connect(EchoEngine(), resolved)
    handler = Recorder()
    connection.attach(handler)
    await connection.wait_connected()
    for n in range(count):
        connection.engine.say(bytes([n]))
    connection.wake()
    assert await wait_for(handler, count) == [bytes([n]) for n in range(count)]
    assert client.statistics().datagrams_sent == 1 + count
    assert listening.statistics().datagrams_received == 1 + count
    assert listening.statistics().bytes_received == client.statistics().bytes_sent
    await client.close()
    await listening.close()
    assert server.acceptor.released_engines == server.acceptor.engines


def test_echo_over_ipv4(run):
    run(echo("127.0.0.1:0", "127.0.0.1:0"))


@needs_ipv6
def test_echo_over_ipv6(run):
    run(echo("[::1]:0", "[::1]:0"))


@needs_ipv6
@pytest.mark.parametrize("address", [":0", "[::]:0"])
@pytest.mark.parametrize("client", ["127.0.0.1:0", "[::1]:0"])
def test_dual_stack(run, address, client):
    run(echo(address, client))


@pytest.mark.skipif(sys.platform != "linux", reason="the options have other numbers elsewhere")
def test_sockets_have_room_and_forbid_fragments(run):
    async def main():
        sockets = [(await Endpoint.bind(address)) for address in ("127.0.0.1:0", ":0")]
        for endpoint in sockets:
            for option, limit in ((socket.SO_RCVBUF, "rmem"), (socket.SO_SNDBUF, "wmem")):
                most = int(Path(f"/proc/sys/net/core/{limit}_max").read_text())
                granted = endpoint._sock.getsockopt(socket.SOL_SOCKET, option) // 2
                assert granted >= min(4 << 20, most)
            assert endpoint._sock.getsockopt(socket.IPPROTO_IP, 10) == 3  # IP_PMTUDISC_PROBE
            await endpoint.close()

    run(main())


def test_many_connections_of_one_socket_are_kept_apart(run):
    async def main():
        server = Server()
        listening = await server.bind()
        client = await Endpoint.bind("127.0.0.1:0")
        connections = [client.connect(EchoEngine(), listening.address) for _ in range(20)]
        handlers = [Recorder() for _ in connections]
        for connection, handler in zip(connections, handlers, strict=True):
            connection.attach(handler)
            await connection.wait_connected()
        for n, connection in enumerate(connections):
            connection.engine.say(bytes([n]))
            connection.wake()
        for n, handler in enumerate(handlers):
            assert await wait_for(handler, 1) == [bytes([n])]
        assert len(listening.connections) == 20
        for connection in connections:
            connection.close()
            await connection.wait_closed()
        assert client.connections == []
        assert client._router.connection_ids == 0
        await until(lambda: not listening.connections)
        assert listening._router.connection_ids == 0
        assert len(server.acceptor.released_engines) == 20
        await client.close()
        await listening.close()

    run(main())


def test_all_waiting_datagrams_are_read_and_answered_in_one_flush(run, monkeypatch):
    async def main():
        monkeypatch.setattr(endpoint_module, "RECEIVE_BATCH", 16)
        server = Server()
        listening = await server.bind()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
            raw.sendto(b"\xc0\0\0\0\1\x08" + b"FIRSTCID" + b"CLIENTID", listening.address)
            for n in range(15):
                raw.sendto(b"\x40" + b"FIRSTCID" + bytes([n]), listening.address)
            for n in range(15, 20):
                raw.sendto(b"\x40" + b"FIRSTCID" + bytes([n]), listening.address)
            await until(lambda: server.handlers)
            await wait_for(server.handlers[0], 20)
            await until(lambda: listening.statistics().datagrams_sent >= 21)
        calls = [call[0] for call in server.acceptor.engines[0].calls]
        assert calls[:17] == ["feed"] * 16 + ["flush"]
        assert calls.count("feed") == 21
        await listening.close()

    run(main())


def test_what_belongs_to_nobody_is_counted_and_dropped(run):
    async def main():
        server = Server()
        listening = await server.bind()
        client = await Endpoint.bind("127.0.0.1:0")
        garbage = [b"", b"\x40short", b"\xc0\0\0", b"\xc0\0\0\0\1\xff" + b"x" * 20]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
            for address in (listening.address, client.address):
                for data in [*garbage, b"\x40" + b"x" * 30]:
                    raw.sendto(data, address)
        for endpoint in (listening, client):
            await until(lambda endpoint=endpoint: endpoint.statistics().datagrams_received == 5)
        assert (listening.statistics().malformed, listening.statistics().ignored) == (4, 1)
        assert (client.statistics().malformed, client.statistics().unroutable) == (4, 1)
        await client.close()
        await listening.close()

    run(main())


def test_an_acceptor_can_answer_without_a_connection(run):
    async def main():
        server = Server(answer=b"\x40" + b"y" * 30)
        listening = await server.bind()
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
            raw.setblocking(False)
            raw.sendto(b"\x40" + b"x" * 30, listening.address)
            assert await loop.sock_recv(raw, 100) == b"\x40" + b"y" * 30
        assert listening.statistics().answered == 1
        assert listening.connections == []
        await listening.close()

    run(main())


def test_on_connection_that_fails_closes_the_connection(run, caplog):
    async def main():
        server = Server()
        server.on_connection = lambda connection: 1 // 0
        listening = await server.bind()
        client = await Endpoint.bind("127.0.0.1:0")
        connection = client.connect(EchoEngine(), listening.address)
        assert (await connection.wait_closed()).by_peer
        await client.close()
        await listening.close()

    run(main())
    assert "on_connection failed" in caplog.text


def test_send_errors_are_counted_and_never_raised(run):
    async def main():
        client = await Endpoint.bind("127.0.0.1:0")
        engine = ScriptedEngine()
        connection = client.connect(engine, ("127.0.0.1", 9))
        engine.output = [
            (bytes(65535), ("127.0.0.1", 9)),
            (b"of another family", ("::1", 9)),
            (b"fine", client.address),
        ]
        connection.wake()
        await until(lambda: client.statistics().datagrams_sent >= 1)
        assert (client.statistics().too_large, client.statistics().send_errors) == (1, 1)
        assert connection.closed is None
        await client.close()

    run(main())


def test_a_full_socket_buffer_queues_and_drops_the_oldest(run, monkeypatch):
    monkeypatch.setattr(endpoint_module, "SEND_QUEUE", 4)

    class Stuck:
        """The endpoint's socket, whose buffer is full while ``stuck``."""

        stuck = True

        def __init__(self, sock):
            self._io = datagram_socket(sock)

        def __getattr__(self, name):
            return getattr(self._io, name)

        @property
        def error(self):
            return errno.EAGAIN if self.stuck else self._io.error

        def send(self, datagrams, start=0):
            return start if self.stuck else self._io.send(datagrams, start)

    monkeypatch.setattr(endpoint_module, "datagram_socket", Stuck)

    async def main():
        client = await Endpoint.bind("127.0.0.1:0")
        engine = ScriptedEngine()
        connection = client.connect(engine, ("127.0.0.1", 9))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
            sink.bind(("127.0.0.1", 0))
            sink.setblocking(False)
            engine.output = [(bytes([n]), sink.getsockname()) for n in range(6)]
            connection.wake()
            await until(lambda: client.statistics().send_queue_dropped)
            engine.output = [(b"last", sink.getsockname())]
            connection.wake()
            await until(lambda: client.statistics().send_queue_dropped >= 3)
            client._io.stuck = False
            loop = asyncio.get_running_loop()
            received = [await loop.sock_recv(sink, 10) for _ in range(4)]
            assert received == [b"\3", b"\4", b"\5", b"last"]
        assert client.statistics().datagrams_sent == 4
        await client.close()

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports them to a bound socket")
def test_a_dead_peer_is_reported_and_the_endpoint_lives_on(run):
    async def main():
        server = Server()
        listening = await server.bind()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            dead = probe.getsockname()
        client = await Endpoint.bind("127.0.0.1:0")
        alive = client.connect(EchoEngine(), listening.address)
        await alive.wait_connected()
        for _ in range(3):
            connection = client.connect(EchoEngine(), dead)
            reported = asyncio.Event()
            connection.on_unreachable = reported.set
            await reported.wait()
            assert connection.closed is None
            connection.abandon()
        handler = Recorder()
        alive.attach(handler)
        alive.engine.say(b"still here")
        alive.wake()
        assert await wait_for(handler, 1) == [b"still here"]
        assert client.statistics().unreachable >= 3
        await client.close()
        await listening.close()

    run(main())


def test_a_port_in_use_is_a_configuration_error_that_names_it(run):
    async def main():
        first = await Endpoint.bind("127.0.0.1:0")
        port = first.address[1]
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port}.*another socket"):
            await Endpoint.bind(("127.0.0.1", port))
        await first.close()
        again = await Endpoint.bind(("127.0.0.1", port))  # free as soon as close returned
        await again.close()
        await again.close()
        with pytest.raises(ConfigurationError, match="no interface of this machine"):
            await Endpoint.bind("192.0.2.1:0")

    run(main())


def test_close_tells_handlers_and_peers_and_lingers_only_as_long_as_asked(run):
    async def main():
        server = Server()
        listening = await server.bind()
        client = await Endpoint.bind("127.0.0.1:0", close_when_idle=True)
        connection = client.connect(EchoEngine(), listening.address)
        await connection.wait_connected()
        loop = asyncio.get_running_loop()
        server.acceptor.engines[0].deadline = loop.time() + 3600  # a very long closing period
        await listening.close(5, "stop", linger=0.01)
        assert server.handlers[0].events[-1] == Closed(5, "stop", False, True)
        assert listening.connections == []
        assert (await connection.wait_closed()).by_peer
        await until(lambda: client.closed)  # its last connection is finished

    run(main())


def test_a_loop_without_add_reader_is_explained():
    class Proactor(asyncio.SelectorEventLoop):
        def add_reader(self, fd, callback, *args):
            raise NotImplementedError

    async def main():
        with pytest.raises(ConfigurationError, match="SelectorEventLoop"):
            await Endpoint.bind("127.0.0.1:0")

    with asyncio.Runner(loop_factory=Proactor) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("example.com:65535", ("example.com", 65535)),
        ("[::1]:5000", ("::1", 5000)),
        ("[::]:0", ("::", 0)),
        (":0", ("", 0)),
        (("host", 7), ("host", 7)),
        (("[fe80::1%eth0]", 7), ("fe80::1%eth0", 7)),
    ],
)
def test_addresses(given, parsed):
    assert parse_address(given) == parsed


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("localhost", "localhost:5000"),
        ("::1:5000", "brackets"),
        ("host:http", "number from 0 to 65535"),
        ("host:-1", "number"),
        ("host:65536", "out of range"),
        ("host:٣", "number"),
        (("host", "5000"), "tuple"),
        (("host", True), "tuple"),
        (("host",), "tuple"),
        (5000, "tuple"),
        (None, "tuple"),
    ],
)
def test_addresses_that_cannot_work_say_what_to_do(given, advice):
    with pytest.raises(ConfigurationError, match=advice):
        parse_address(given)


def test_display_and_connection_ids():
    assert display_address(("::ffff:10.0.0.1", 5, 0, 0)) == ("10.0.0.1", 5)
    assert display_address(("::1", 5, 0, 0)) == ("::1", 5)
    assert destination_connection_id(b"\x40" + b"12345678" + b"rest") == b"12345678"
    assert destination_connection_id(b"\xc0\0\0\0\1\x03abcdef") == b"abc"
    assert destination_connection_id(b"\xc0\0\0\0\1\x00") == b""
