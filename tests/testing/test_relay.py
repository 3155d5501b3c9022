"""The relay between real sockets."""

import asyncio
import socket

import pytest

from echostream.testing.network import Impairment
from echostream.testing.relay import UdpRelay


class Lab:
    """A plain server socket, a relay and a plain client socket."""

    async def __aenter__(self):
        self.server, self.client = (self._socket() for _ in range(2))
        self.loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *exc_info):
        self.server.close()
        self.client.close()

    def _socket(self):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    async def relay(self, **options):
        return await UdpRelay.start(self.server.getsockname(), **options)

    async def exchange(self, relay, payloads):
        """Send each upwards, one after the other, and say what arrived for each."""
        arrived = []
        for payload in payloads:
            before, _ = relay.statistics()
            self.client.sendto(payload, relay.address)
            while (after := relay.statistics()[0]).received == before.received:  # noqa: ASYNC110
                await asyncio.sleep(0)
            got = [
                (await self.loop.sock_recv(self.server, 65535))
                for _ in range(after.delivered - before.delivered)
            ]
            arrived.append(got)
        return arrived


def run(main):
    async def bounded():
        async with asyncio.timeout(20), Lab() as lab:
            await main(lab)

    asyncio.run(bounded())


def test_both_ways_and_rebinding():
    async def main(lab):
        async with await lab.relay(down=Impairment(delay=0.001)) as relay:
            seen = []
            for n in range(3):
                lab.client.sendto(b"ping", relay.address)
                data, address = await lab.loop.sock_recvfrom(lab.server, 100)
                seen.append(address[1])
                lab.server.sendto(data + bytes([n]), address)
                assert await lab.loop.sock_recv(lab.client, 100) == b"ping" + bytes([n])
                assert relay.upstream_ports == [address[1]]
                relay.rebind()
            assert len(set(seen)) == 3
        relay.close()

    run(main)


def test_a_first_burst_opens_one_upstream_socket():
    async def main(lab):
        async with await lab.relay() as relay:
            for n in range(20):
                lab.client.sendto(bytes([n]), relay.address)
            received = [await lab.loop.sock_recvfrom(lab.server, 10) for _ in range(20)]
            assert [data for data, _ in received] == [bytes([n]) for n in range(20)]
            assert {address[1] for _, address in received} == set(relay.upstream_ports)
            assert len(relay.upstream_ports) == 1

    run(main)


def test_faults_are_those_of_the_model_and_repeat_with_the_seed():
    faults = Impairment(loss=0.3, corrupt=0.2, truncate=0.1, duplicate=0.1)
    payloads = [bytes([n]) * 50 for n in range(200)]

    async def main(lab):
        runs = []
        for seed in (1, 1, 2):
            async with await lab.relay(up=faults, seed=seed) as relay:
                runs.append(await lab.exchange(relay, payloads))
                up, _ = relay.statistics()
                assert (up.received, up.lost) == (200, runs[-1].count([]))
                assert 40 <= up.lost <= 80
                assert 15 <= up.corrupted <= 45
                whole = sum(got[:1] == [sent] for got, sent in zip(runs[-1], payloads, strict=True))
                damaged = 200 - up.lost - whole
                assert up.corrupted + up.truncated - 10 <= damaged <= up.corrupted + up.truncated
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    run(main)


def test_faults_can_be_set_while_it_runs():
    async def main(lab):
        async with await lab.relay() as relay:
            assert await lab.exchange(relay, [b"a"]) == [[b"a"]]
            relay.up = Impairment(blackhole=True)
            assert await lab.exchange(relay, [b"b"]) == [[]]
            relay.up = Impairment(mtu=10)
            assert await lab.exchange(relay, [b"c" * 11, b"d"]) == [[], [b"d"]]
            assert relay.up.mtu == 10
            assert relay.down == Impairment()

    run(main)


def test_a_port_in_use_is_the_systems_error():
    async def main(lab):
        with pytest.raises(OSError):
            await lab.relay(port=lab.client.getsockname()[1])

    run(main)
