"""Two machines get to know each other by a short code, and nobody stands between them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rpc_support import outcome, real, virtual

from echostream import (
    ConfigurationError,
    Identity,
    IdentityError,
    PermissionDenied,
    RpcClient,
    RpcServer,
    Session,
    handler,
)
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.pairing import (
    ATTEMPT_S,
    BEGIN,
    CONFIRM,
    Paired,
    Pairing,
    exchange_codes,
    pair,
    paired_clients,
)
from echostream.rpc.authentication import Credentials
from echostream.testing import Impairment, QuicNetwork
from echostream.testing.quic_network import SERVER_HOST, SERVER_PORT
from echostream.transport.code_exchange import CodeExchange
from echostream.transport.known_clients import KnownClients
from echostream.transport.known_hosts import KnownHosts
from echostream.transport.known_services import KnownServices

pytest.importorskip("spake2")
PROJECT = Path(__file__).parents[2]
KITCHEN, LAPTOP, IMPOSTOR = (Identity.ephemeral(name) for name in ("kitchen", "laptop", "other"))
WIRE = Impairment(delay=0.01)


def offering(folder: Path, **options: Any) -> Pairing:
    options = {"identity": KITCHEN, "name": "kitchen"} | options
    return Pairing((SERVER_HOST, SERVER_PORT), known_clients=folder / "known_clients", **options)


def wrong(code: str) -> str:
    return f"{(int(code.replace(' ', '')) + 1) % 1_000_000:06}"


async def typed(network: QuicNetwork, code: str, identity: Identity = LAPTOP) -> Paired:
    """The other side, on a path with a delay."""
    builder = ClientBuilder().credentials(identity=identity)
    connected = await network.connect(builder, up=WIRE, down=WIRE)
    return await exchange_codes(connected, code, identity, name="laptop")


@virtual
async def _pairs(folder: Path) -> None:
    pairing = offering(folder)
    async with QuicNetwork() as network:
        await network.serve(pairing.install(ServerBuilder()))
        server = await typed(network, pairing.code)
        client = await pairing.wait()
        assert (server.fingerprint, server.name) == (KITCHEN.fingerprint, "kitchen")
        assert (client.fingerprint, client.name) == (LAPTOP.fingerprint, "laptop")
        assert KnownClients(folder / "known_clients").name_of(LAPTOP.fingerprint) == "laptop"
        again = await outcome(typed(network, pairing.code))
        assert isinstance(again, IdentityError), "a code is good once"


def test_both_sides_know_each_other_afterwards(tmp_path: Path) -> None:
    _pairs(tmp_path)


def test_a_wrong_code_is_told_to_both_and_uses_the_code_up(tmp_path: Path) -> None:
    @virtual
    async def main() -> None:
        pairing = offering(tmp_path)
        async with QuicNetwork() as network:
            await network.serve(pairing.install(ServerBuilder()))
            refused = await outcome(typed(network, wrong(pairing.code)))
            assert isinstance(refused, IdentityError)
            assert "did not agree" in str(refused)
            failed = await outcome(pairing.wait())
            assert isinstance(failed, IdentityError)
            assert "did not agree" in str(failed)
            late = await outcome(typed(network, pairing.code))
            assert isinstance(late, IdentityError)
            assert "was tried before" in str(late)
        assert not (tmp_path / "known_clients").exists()

    main()


class Between:
    """Stands between the two, with a connection to each, and forwards what they say."""

    def __init__(self, network: QuicNetwork) -> None:
        self._network = network
        self._further: RpcClient | None = None
        self.seen: list[Any] = []

    def install(self, builder: ServerBuilder) -> ServerBuilder:
        async def let_in(session: Session, credentials: Any) -> None:
            return None

        builder.bind((SERVER_HOST, SERVER_PORT + 1)).identity(IMPOSTOR).authenticate(let_in)
        return builder.handler(BEGIN, self.forward(BEGIN)).handler(CONFIRM, self.forward(CONFIRM))

    def forward(self, method: str) -> Any:
        async def forward(said: Any) -> Any:
            if self._further is None:
                builder = ClientBuilder().credentials(identity=IMPOSTOR)
                self._further = await self._network.connect(builder, up=WIRE, down=WIRE)
            self.seen.append(said)
            return await self._further.request(method, said)

        return forward


def test_a_man_in_the_middle_is_refused_on_both_sides(tmp_path: Path) -> None:
    """He ends both connections with a key of his own, and forwards every message as it is."""

    @virtual
    async def main() -> None:
        pairing = offering(tmp_path)
        async with QuicNetwork() as network:
            between = Between(network)
            await network.serve(pairing.install(ServerBuilder()))
            await network.serve(between.install(ServerBuilder()))
            builder = ClientBuilder().connect((SERVER_HOST, SERVER_PORT + 1))
            builder.credentials(identity=LAPTOP)
            victim = await network.connect(builder, up=WIRE, down=WIRE)
            refused = await outcome(exchange_codes(victim, pairing.code, LAPTOP))
            assert isinstance(refused, IdentityError)
            assert "somebody stands between" in str(refused)
            failed = await outcome(pairing.wait())
            assert isinstance(failed, IdentityError)
            assert "somebody stands between" in str(failed)
            assert len(between.seen) == 2, "he got as far as the proof"
        assert not (tmp_path / "known_clients").exists()

    main()


def test_a_server_that_proves_nothing_is_refused(tmp_path: Path) -> None:
    """It takes whatever the client says for right."""

    @virtual
    async def main() -> None:
        async def begin(said: dict[str, Any]) -> dict[str, Any]:
            exchange = CodeExchange(
                "000000", client="", server=IMPOSTOR.fingerprint, is_client=False
            )
            return {"message": exchange.message, "name": "kitchen"}

        async def confirm(proof: bytes) -> bytes:
            return proof  # the client's own, sent back

        async with QuicNetwork() as network:
            builder = ServerBuilder().identity(IMPOSTOR)
            await network.serve(builder.handler(BEGIN, begin).handler(CONFIRM, confirm))
            refused = await outcome(typed(network, "123456"))
            assert isinstance(refused, IdentityError)
            assert "did not agree" in str(refused)

    main()


@pytest.mark.parametrize(
    "message", [b"", b"A" + bytes(32), b"A" + b"\xff" * 32, b"B" + bytes(32), bytes(33), "text", 5]
)
def test_what_is_no_part_of_an_exchange_is_refused(message: Any, tmp_path: Path) -> None:
    @virtual
    async def main() -> None:
        pairing = offering(tmp_path)
        async with QuicNetwork() as network:
            await network.serve(pairing.install(ServerBuilder()))
            builder = ClientBuilder().credentials(identity=LAPTOP)
            hostile = await network.connect(builder, up=WIRE, down=WIRE)
            assert "malformed" in str(await outcome(hostile.request(BEGIN, {"message": message})))
            assert "malformed" in str(await outcome(pairing.wait()))
            assert "no pairing" in str(await outcome(hostile.request(CONFIRM, bytes(32))))

    main()


def test_a_code_lives_for_a_time_and_an_attempt_for_a_shorter_one(tmp_path: Path) -> None:
    @virtual
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with QuicNetwork() as network:
            idle = offering(tmp_path, lifetime=60.0)
            running = await network.serve(idle.install(ServerBuilder()))
            begun = loop.time()
            assert "within 60 s" in str(await outcome(idle.wait()))
            assert loop.time() - begun == pytest.approx(60.0)
            assert isinstance(await outcome(typed(network, idle.code)), IdentityError)
            await network.kill(running)

            dawdling = offering(tmp_path)
            await network.serve(dawdling.install(ServerBuilder()))
            builder = ClientBuilder().credentials(identity=LAPTOP)
            slow = await network.connect(builder, up=WIRE, down=WIRE)
            exchange = CodeExchange(
                "123456",
                client=LAPTOP.fingerprint,
                server=KITCHEN.fingerprint,
                is_client=True,
            )
            await slow.request(BEGIN, {"message": exchange.message})
            begun = loop.time()
            assert "did not finish" in str(await outcome(dawdling.wait()))
            assert loop.time() - begun <= ATTEMPT_S

    main()


def test_nobody_is_paired_who_leaves_or_shows_no_key(tmp_path: Path) -> None:
    @virtual
    async def main() -> None:
        pairing = offering(tmp_path)
        async with QuicNetwork() as network:
            await network.serve(pairing.install(ServerBuilder()))
            nameless = await outcome(network.connect(ClientBuilder(), up=WIRE, down=WIRE))
            assert isinstance(nameless, IdentityError)
            builder = ClientBuilder().credentials(identity=LAPTOP)
            leaving = await network.connect(builder, up=WIRE, down=WIRE)
            exchange = CodeExchange("123456", client="", server="", is_client=True)
            await leaving.request(BEGIN, {"message": exchange.message})
            await leaving.close()
            assert "left in the middle" in str(await outcome(pairing.wait()))

    main()


@pytest.mark.parametrize("code", ["", "12345", "1234567", "12345a", "１２３４５６"])
def test_what_is_no_code_is_said_before_it_is_used(code: str) -> None:
    with pytest.raises(ConfigurationError, match="6 digits"):
        asyncio.run(pair("127.0.0.1:1", code, identity=LAPTOP))


@handler("greeting")
async def greeting(session: Session) -> list[str]:
    return [session.fingerprint or "", *sorted(session.grants)]


def echostream(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "echostream.cli", "identity", "pair", *words, "--json"],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "ECHOSTREAM_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_with_one_command_each(tmp_path: Path) -> None:
    """Two machines that were never used before, and then a server that takes paired clients."""
    homes = tmp_path / "kitchen", tmp_path / "laptop"
    showing = echostream(homes[0], "127.0.0.1:0", "--listen", "--name", "kitchen")
    assert showing.stdout is not None
    line = showing.stdout.readline()
    assert line, showing.communicate()
    told = json.loads(line)
    address = f"127.0.0.1:{told['port']}"
    typing = echostream(homes[1], address, "--service", "Kitchen", "--name", "laptop")
    out, err = typing.communicate(told["code"] + "\n", timeout=60)
    assert typing.returncode == 0, err
    rest, err = showing.communicate(timeout=60)
    assert showing.returncode == 0, err
    kitchen, laptop = (Identity.self_signed(directory=home) for home in homes)
    assert json.loads(out) == {"paired": "kitchen", "fingerprint": kitchen.fingerprint}
    assert json.loads(rest) == {"paired": "laptop", "fingerprint": laptop.fingerprint}
    known = KnownHosts(homes[1] / "known_hosts").lookup("127.0.0.1", told["port"])
    assert known is not None
    assert known.fingerprint == kitchen.fingerprint
    (service,) = KnownServices(homes[1] / "known_services").lookup("kitchen")
    assert service.fingerprint == kitchen.fingerprint
    clients = homes[0] / "known_clients"
    assert KnownClients(clients).name_of(laptop.fingerprint) == "laptop"

    @real
    async def main() -> None:
        builder = RpcServer.builder().bind(address).identity(kitchen).handler(greeting)
        builder.authenticate(paired_clients(clients, grants=["play"]))
        trust = {"known_hosts": homes[1] / "known_hosts"}
        async with builder.build() as server:
            async with RpcClient.connect(server.address, identity=laptop, **trust) as client:
                assert await client.request("greeting") == [laptop.fingerprint, "play"]
            for stranger in (None, IMPOSTOR):
                refused = await outcome(
                    RpcClient.connect(server.address, identity=stranger, **trust)._connect()
                )
                assert isinstance(refused, IdentityError)
                assert "not paired" in str(refused)

    main()


def test_a_wrong_code_between_two_processes(tmp_path: Path) -> None:
    homes = tmp_path / "kitchen", tmp_path / "laptop"
    showing = echostream(homes[0], "127.0.0.1:0", "--listen")
    assert showing.stdout is not None
    told = json.loads(showing.stdout.readline())
    address = f"127.0.0.1:{told['port']}"
    typing = echostream(homes[1], address, "--code", wrong(told["code"]))
    for side in (typing, showing):
        out, err = side.communicate(timeout=60)
        assert side.returncode == 1, (out, err)
        assert "did not agree" in err
        assert out == ""
    assert not (homes[0] / "known_clients").exists()
    assert KnownHosts(homes[1] / "known_hosts").entries() == []


def test_a_new_pairing_replaces_what_was_known(tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"

    @real
    async def main() -> None:
        pairing = Pairing("127.0.0.1:0", identity=KITCHEN, known_clients=tmp_path / "known_clients")
        async with pairing:
            host, port = pairing.address
            KnownHosts(known_hosts).record(host, port, IMPOSTOR.fingerprint)
            options: dict[str, Any] = {"identity": LAPTOP, "known_hosts": known_hosts}
            await pair(pairing.address, pairing.code, addresses=["10.0.0.5:5000"], **options)
            await pairing.wait()
        entries = {each.key: each.fingerprint for each in KnownHosts(known_hosts).entries()}
        assert entries == {
            f"{host}:{port}": KITCHEN.fingerprint,
            "10.0.0.5:5000": KITCHEN.fingerprint,
        }

    main()


def test_a_client_that_is_written_down_has_not_failed(tmp_path: Path) -> None:
    """Writing may wait for the file's lock: neither the time limit nor the client's end counts."""

    @virtual
    async def main() -> None:
        pairing = offering(tmp_path)
        record = pairing._known.record

        def written(name: str, fingerprint: str) -> None:
            assert pairing._timer is None
            assert pairing._attempt is not None
            left = pairing._left(pairing._attempt[0])
            with pytest.raises(StopIteration):
                left.send(None)
            record(name, fingerprint)

        pairing._known.record = written  # type: ignore[method-assign, assignment]
        async with QuicNetwork() as network:
            await network.serve(pairing.install(ServerBuilder()))
            await typed(network, pairing.code)
            assert (await pairing.wait()).name == "laptop"

    main()


def test_a_broken_file_is_told_to_the_log_and_not_to_clients(tmp_path: Path) -> None:
    file = tmp_path / "known_clients"
    file.write_text("nonsense\n")
    credentials: Any = Credentials(None, LAPTOP.fingerprint)
    session: Any = None

    @virtual
    async def main() -> None:
        refused = await outcome(paired_clients(file)(session, credentials))
        assert isinstance(refused, PermissionDenied)
        assert str(tmp_path) not in refused.message

    main()
