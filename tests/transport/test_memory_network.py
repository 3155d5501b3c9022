"""Opaque datagrams between endpoints on a virtual network."""

import asyncio

import pytest
from scripted_engine import EchoAcceptor, EchoEngine, Recorder

from echostream.errors import ConfigurationError
from echostream.testing.virtual_time import run_virtual
from echostream.transport.engine import Closed, DatagramReceived
from echostream.transport.impairment import Impairer, Impairment
from echostream.transport.memory_network import MemoryNetwork


class World:
    """A server, a client and one connection between them."""

    def __init__(self, impairment=None, seed=1):
        self.network = MemoryNetwork(impairment, seed=seed)
        self.acceptor = EchoAcceptor()
        self.server = self.network.endpoint(
            "server", 5000, acceptor=self.acceptor, on_connection=self.accepted
        )
        self.client = self.network.endpoint("client")
        self.handler = Recorder()
        self.server_handler = Recorder()

    def accepted(self, connection):
        return self.server_handler

    async def connect(self):
        self.connection = self.client.connect(EchoEngine(), self.server.address)
        self.connection.attach(self.handler)
        await self.connection.wait_connected()

    def say(self, data):
        self.connection.engine.say(data)
        self.connection.wake()

    def heard(self, handler=None):
        events = (handler or self.handler).events
        return [event.data for event in events if type(event) is DatagramReceived]


def test_echo_takes_a_round_trip():
    async def main():
        world = World(Impairment(delay=0.05))
        loop = asyncio.get_running_loop()
        start = loop.time()
        await world.connect()
        assert loop.time() == pytest.approx(start + 0.1)
        world.say(b"hello")
        await asyncio.sleep(0.099)
        assert world.heard() == []
        await asyncio.sleep(0.002)
        assert world.heard() == [b"hello"]
        world.connection.close()
        await asyncio.sleep(1)
        assert world.server_handler.events[-1] == Closed(0, "bye", True, True)
        assert world.acceptor.released_engines == world.acceptor.engines
        await world.client.close()
        await world.server.close()

    run_virtual(main())


def test_impairments_can_be_changed_per_path_and_are_counted():
    async def main():
        world = World()
        await world.connect()
        world.network.impair(Impairment(blackhole=True), source="client", destination="server")
        world.say(b"lost")
        await asyncio.sleep(1)
        world.network.impair(Impairment(duplicate=1.0))
        world.say(b"twice")
        await asyncio.sleep(1)
        assert world.heard(world.server_handler) == [b"twice", b"twice"]
        assert world.heard() == [b"twice"] * 4
        up = world.network.statistics("client", "server")
        assert (up.received, up.lost, up.delivered, up.duplicated) == (3, 1, 3, 1)
        with pytest.raises(ValueError):
            world.network.impair(Impairment(), source="client")

    run_virtual(main())


def test_a_slow_path_does_not_hold_up_a_fast_one():
    async def main():
        world = World()
        await world.connect()
        world.network.impair(Impairment(delay=5.0), source="client", destination="far")
        world.connection.engine.output.append((b"slow", ("far", 1)))
        world.say(b"fast")
        world.network.impair(Impairment(delay=0.1), source="client", destination="server")
        await asyncio.sleep(1)
        assert world.heard() == [b"fast"]

    run_virtual(main())


def test_rebinding_changes_the_port_and_the_old_one_is_dead():
    async def main():
        world = World(Impairment(delay=0.01))
        await world.connect()
        old = world.client.address
        world.say(b"answered to the old port")
        await asyncio.sleep(0.015)
        world.client.rebind()
        assert world.client.address != old
        await asyncio.sleep(1)
        assert world.heard() == []
        world.say(b"new")
        await asyncio.sleep(1)
        assert world.heard() == [b"new"]
        assert world.acceptor.engines[0].address == world.client.address

    run_virtual(main())


def test_close_tells_the_peer_and_frees_the_address():
    async def main():
        world = World()
        await world.connect()
        loop = asyncio.get_running_loop()
        world.acceptor.engines[0].deadline = loop.time() + 3
        world.acceptor.engines[0].deadline_after_timer = None
        start = loop.time()
        with pytest.raises(ConfigurationError, match="server:5000 is in use"):
            world.network.endpoint("server", 5000)
        await world.server.close(linger=60)
        assert loop.time() == start + 3
        assert (await world.connection.wait_closed()).by_peer
        world.network.endpoint("server", 5000)

    run_virtual(main())


def test_the_same_seed_gives_the_same_network():
    async def main(seed):
        world = World(seed=seed)
        await world.connect()
        world.network.impair(Impairment(delay=0.01, jitter=0.01, loss=0.3))
        for n in range(100):
            world.say(bytes([n]))
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        return world.heard()

    assert run_virtual(main(1)) == run_virtual(main(1))
    assert run_virtual(main(1)) != run_virtual(main(2))


def fates(impairment, count=10_000, size=100, gap=0.0, seed=7):
    path = Impairer(impairment, seed)
    payload = bytes(size)
    return path, [path.datagram(payload, 10 + n * gap) for n in range(count)]


def test_the_model_keeps_its_rates():
    path, all_fates = fates(Impairment(loss=0.2, corrupt=0.1, truncate=0.1, duplicate=0.1))
    statistics = path.statistics()
    assert statistics.received == 10_000
    assert 1800 < statistics.lost < 2200
    for count in (statistics.corrupted, statistics.truncated, statistics.duplicated):
        assert 700 < count < 900
    assert statistics.delivered == sum(map(len, all_fates))
    flipped = [d for fate in all_fates for _, d in fate[:1] if len(d) == 100 and any(d)]
    assert all(sum(byte.bit_count() for byte in data) == 1 for data in flipped)
    assert 600 < len(flipped) < 900
    assert all(len(data) >= 1 for fate in all_fates for _, data in fate)


def test_losses_come_in_bursts():
    _, all_fates = fates(Impairment(burst_start=0.02, burst_end=0.25))
    lost = [not fate for fate in all_fates]
    bursts = sum(a and not b for a, b in zip(lost, [*lost[1:], False], strict=True))
    assert 3.2 < sum(lost) / bursts < 4.8  # 1 / burst_end
    assert 0.05 < sum(lost) / len(lost) < 0.1  # start / (start + end)


def test_rate_queue_mtu_and_jitter():
    _, all_fates = fates(Impairment(delay=1.0, rate=1000, queue=3), count=10)
    assert [fate[0][0] for fate in all_fates if fate] == pytest.approx([11.1, 11.2, 11.3, 11.4])
    _, all_fates = fates(Impairment(delay=1.0, rate=1000, queue=3), count=10, gap=0.1)
    assert len([fate for fate in all_fates if fate]) == 10
    assert not any(fates(Impairment(mtu=99))[1])
    _, all_fates = fates(Impairment(delay=0.5, jitter=0.2))
    arrivals = [fate[0][0] for fate in all_fates]
    assert 10.3 <= min(arrivals) < 10.31
    assert 10.69 < max(arrivals) <= 10.7


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.5}, {"delay": -1}, {"rate": float("nan")}, {"corrupt": float("nan")}]
)
def test_impossible_impairments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Impairment(**wrong)
