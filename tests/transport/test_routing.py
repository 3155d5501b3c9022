"""Which datagrams a router looks at."""

import asyncio

from scripted_engine import EchoAcceptor, Recorder

from echostream.transport.engine import Ect0Address
from echostream.transport.routing import Router


def test_nothing_from_port_0_is_answered() -> None:
    """Nothing can be sent there: EINVAL would have the socket give up trains and marks."""
    asyncio.run(port_0())


async def port_0() -> None:
    seen: list[object] = []

    class Acceptor(EchoAcceptor):
        def accept(self, data, address, now):
            seen.append(address)
            return b"answer"

    sent: list[object] = []
    router = Router(
        sent.extend,
        loop=asyncio.get_running_loop(),
        acceptor=Acceptor(),
        on_connection=lambda connection: Recorder(),
    )
    data = b"\xc0\0\0\0\1\x08" + bytes(40)
    router.receive([(data, ("192.0.2.1", 0)), (data, Ect0Address(("192.0.2.1", 0)))])
    assert not seen
    assert not sent
    assert router.malformed == 2
    router.receive([(data, ("192.0.2.1", 1))])
    assert sent == [(b"answer", ("192.0.2.1", 1))]
