"""Happy eyeballs on loopback sockets."""

import asyncio
import gc
import socket

import pytest
from scripted_engine import EchoAcceptor, EchoEngine, Recorder, until

from echostream.errors import ConfigurationError, ConnectionClosed, IdentityError
from echostream.transport.connection import Connection
from echostream.transport.dial import dial
from echostream.transport.endpoint import Endpoint
from echostream.transport.engine import HandshakeCompleted

V4, V6 = socket.AF_INET, socket.AF_INET6


async def listen(*, silent=False):
    acceptor = EchoAcceptor(silent=silent)
    endpoint = await Endpoint.bind(
        "127.0.0.1:0", acceptor=acceptor, on_connection=lambda connection: Recorder()
    )
    return endpoint, acceptor


def resolve_to(*addresses):
    """Make the loop's name resolution answer with ``addresses``."""

    async def getaddrinfo(host, port, **options):
        return [
            (V6 if ":" in ip else V4, socket.SOCK_DGRAM, 17, "", (ip, port, *other))
            for ip, port, *other in addresses
        ]

    asyncio.get_running_loop().getaddrinfo = getaddrinfo


def run(main):
    async def bounded():
        async with asyncio.timeout(10):
            await main
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, others

    asyncio.run(bounded())
    gc.collect()  # a socket left open would warn here


class Engines:
    """Makes client engines and remembers them."""

    def __init__(self):
        self.made = []

    def __call__(self):
        self.made.append(EchoEngine())
        return self.made[-1]


def dead_port():
    with socket.socket(V4, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_winner_keeps_its_events_for_the_handler():
    async def main():
        server, _ = await listen()
        connection = await dial("127.0.0.1", server.address[1], EchoEngine)
        handler = Recorder()
        connection.attach(handler)
        await asyncio.sleep(0)
        assert [type(event) for event in handler.events] == [HandshakeCompleted]
        assert connection.on_unreachable is None
        connection.close()
        await connection.wait_closed()
        await server.close()

    run(main())


def test_a_silent_address_does_not_hold_up_the_next():
    async def main():
        silent, silent_acceptor = await listen(silent=True)
        server, _ = await listen()
        engines = Engines()
        resolve_to(silent.address, server.address)
        connection = await dial("name", 1, engines, stagger=0.01)
        assert connection.peer_address == server.address
        assert len(engines.made) == 2
        assert engines.made[0].count("close") == 1  # the loser was closed, and said so
        await until(lambda: not silent.connections)
        assert len(silent_acceptor.released_engines) == 1
        connection.close()
        await silent.close()
        await server.close()

    run(main())


def test_of_two_that_complete_at_once_one_is_closed(monkeypatch):
    async def main():
        made = []
        both = asyncio.Event()

        async def attempt(family, address, make_engine):
            made.append(Connection(make_engine(), lambda datagrams: None, peer_address=address))
            if len(made) == 2:
                both.set()
            await both.wait()
            return made[-1] if address[1] == 2 else made[0]

        monkeypatch.setattr("echostream.transport.dial._attempt", attempt)
        resolve_to(("127.0.0.1", 1), ("127.0.0.1", 2))
        winner = await dial("name", 1, EchoEngine, stagger=0.0)
        assert len(made) == 2
        for connection in made:
            assert connection.engine.count("close") == (connection is not winner)
        await asyncio.sleep(0)

    run(main())


def test_families_take_turns():
    async def main():
        tried = []
        addresses = [("::1", 1, 0, 0), ("::1", 2, 0, 0), ("127.0.0.1", 3), ("127.0.0.1", 4)]
        resolve_to(*addresses)

        class Failing(EchoEngine):
            def connect(self, address, now):
                tried.append(address)
                raise OSError("not this one")

        with pytest.raises(ConnectionClosed) as caught:
            await dial("name", 1, Failing)
        if len(tried) == 4:  # a host without IPv6 does not come to try them
            assert tried == [addresses[0], addresses[2], addresses[1], addresses[3]]
        for text in ("[::1]:1", "[::1]:2", "127.0.0.1:3", "127.0.0.1:4"):
            assert text in str(caught.value)

    run(main())


@pytest.mark.skipif(not hasattr(socket, "MSG_ERRQUEUE"), reason="needs Linux's error reports")
def test_a_port_where_nobody_listens_is_refused_at_once():
    async def main():
        with pytest.raises(ConnectionClosed, match="refused"):
            await dial("127.0.0.1", dead_port(), EchoEngine, timeout=3600)

    run(main())


def test_the_timeout_names_what_was_tried():
    async def main():
        silent, _ = await listen(silent=True)
        port = silent.address[1]
        with pytest.raises(ConnectionClosed, match=rf"within 0\.05 s .*127\.0\.0\.1:{port}: no an"):
            await dial("127.0.0.1", port, EchoEngine, timeout=0.05)
        await until(lambda: not silent.connections)
        await silent.close()

    run(main())


def test_cancelling_closes_every_attempt():
    async def main():
        silent, acceptor = await listen(silent=True)
        task = asyncio.ensure_future(dial("127.0.0.1", silent.address[1], EchoEngine))
        await until(lambda: acceptor.engines)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not silent.connections)
        await silent.close()

    run(main())


def test_names_and_addresses_that_cannot_work():
    async def main():
        async def unknown(host, port, **options):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        asyncio.get_running_loop().getaddrinfo = unknown
        with pytest.raises(ConnectionClosed, match="'nowhere' cannot be resolved"):
            await dial("nowhere", 1, EchoEngine)
        with pytest.raises(ConfigurationError, match="names no host"):
            await dial("", 5000, EchoEngine)
        with pytest.raises(ConfigurationError, match="port 0"):
            await dial("host", 0, EchoEngine)

    run(main())


def test_an_engine_that_cannot_be_made_is_the_callers_error():
    async def main():
        def broken():
            raise ValueError("no certificate")

        with pytest.raises(ValueError, match="no certificate"):
            await dial("127.0.0.1", 1, broken)

    run(main())


def test_a_program_may_end_while_its_socket_lingers():
    async def main():
        server, _ = await listen()
        connection = await dial("127.0.0.1", server.address[1], EchoEngine)
        connection.engine.deadline = asyncio.get_running_loop().time() + 3600
        connection.close()
        await connection.wait_closed()
        assert not connection.finished
        await server.close()

    run(main())


def test_all_addresses_of_a_server_race():
    async def main():
        server, _ = await listen()
        others = [("127.0.0.1", dead_port()), server.address]
        connection = await dial("127.0.0.1", dead_port(), EchoEngine, stagger=0.01, others=others)
        assert connection.peer_address[1] == server.address[1]
        connection.close()
        await connection.wait_closed()
        await server.close()

    run(main())


def test_the_first_with_the_right_key_wins_and_not_the_first_that_answers():
    async def main():
        wrong, right = (await listen())[0], (await listen())[0]
        checked = []

        def check(certificate):
            checked.append(certificate)
            if len(checked) == 1:
                raise IdentityError("another key")

        connection = await dial(
            "127.0.0.1", wrong.address[1], EchoEngine, others=[right.address], check=check
        )
        assert connection.peer_address[1] == right.address[1]
        assert len(checked) == 2
        connection.close()
        await connection.wait_closed()
        await wrong.close()
        await right.close()

    run(main())


def test_where_every_key_is_wrong_that_is_the_error():
    async def main():
        server, _ = await listen()

        def check(certificate):
            raise IdentityError("another key")

        with pytest.raises(IdentityError, match="another key"):
            await dial(
                "127.0.0.1",
                dead_port(),
                EchoEngine,
                stagger=0.01,
                others=[server.address],
                check=check,
            )
        await server.close()

    run(main())


def test_a_name_that_is_unknown_is_no_reason_to_leave_out_the_others():
    async def main():
        server, _ = await listen()

        async def getaddrinfo(host, port, **options):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        asyncio.get_running_loop().getaddrinfo = getaddrinfo
        connection = await dial("unknown", 1, EchoEngine, others=[server.address])
        connection.close()
        await connection.wait_closed()
        with pytest.raises(ConnectionClosed, match="'unknown' cannot be resolved"):
            await dial("unknown", 1, EchoEngine, others=[("also-unknown", 2)])
        await server.close()

    run(main())
