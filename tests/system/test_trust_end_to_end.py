"""Who the server is, over real QUIC: what is accepted, refused, remembered and said."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from rpc_support import outcome, real, server_builder

from echostream import ConnectionClosed, Identity, IdentityError, RpcClient, RpcServer
from echostream.codes import Close


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of all engine events with application bytes that servers got."""
    from echostream.rpc.peer import Peer
    from echostream.transport import engine as en

    found: list[str] = []
    original = Peer.engine_event

    def engine_event(self: Peer, event: en.EngineEvent) -> None:
        if not self.connection.engine.is_client and not isinstance(
            event, en.Closed | en.HandshakeCompleted
        ):
            found.append(type(event).__name__)
        original(self, event)

    monkeypatch.setattr(Peer, "engine_event", engine_event)
    return found


async def _connects(server: RpcServer, **trust: Any) -> Any:
    connecting = RpcClient.connect(server.address, timeout=5, **trust)
    client = await outcome(connecting._connect())
    if isinstance(client, RpcClient):
        await client.close()
    return client


@real
async def test_a_pinned_fingerprint(heard: list[str]) -> None:
    async with server_builder().build() as server:
        wrong = await _connects(server, fingerprint="sha256:" + "ab" * 32)
        assert isinstance(wrong, IdentityError)
        assert server.fingerprint in str(wrong)
        assert "fingerprint=" in str(wrong)
        await _gone(server)
        assert heard == []  # no application byte, not even HELLO
        shouted = server.fingerprint.removeprefix("sha256:").upper()
        assert isinstance(await _connects(server, fingerprint=shouted), RpcClient)
        assert heard


async def _gone(server: RpcServer) -> None:
    while server._tasks:
        await asyncio.wait(tuple(server._tasks))


@real
async def test_first_use_is_remembered_and_a_changed_key_refused(
    heard: list[str], tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    async with server_builder().build() as server:
        address = server.address
        assert isinstance(await _connects(server, known_hosts=known), RpcClient)
        assert server.fingerprint in known.read_text()
        before = known.read_text()
        assert isinstance(await _connects(server, known_hosts=known), RpcClient)
        assert known.read_text() == before
    heard.clear()
    other = RpcServer.builder().bind(address).identity(Identity.ephemeral())
    async with other.build() as server:
        refused = await _connects(server, known_hosts=known)
        assert isinstance(refused, IdentityError)
        text = str(refused)
        assert "has changed" in text
        assert server.fingerprint in text
        assert "delete line 1" in text.replace(f"line 1 of {known}", "line 1")
        await _gone(server)
        assert heard == []
        assert known.read_text() == before
        assert isinstance(await _connects(server, fingerprint=server.fingerprint), RpcClient)


@real
async def test_an_authority(heard: list[str], tmp_path: Path) -> None:
    identity = Identity.ephemeral("authority", names=["localhost", "127.0.0.1"])
    other = Identity.ephemeral("other", names=["localhost", "127.0.0.1"])
    async with RpcServer.builder().bind("127.0.0.1:0").identity(identity).build() as server:
        path = tmp_path / "ca.pem"
        path.write_bytes(identity.certificate_pem)
        assert isinstance(await _connects(server, ca=path), RpcClient)
        assert isinstance(await _connects(server, ca=identity.certificate_pem), RpcClient)
        heard.clear()
        refused = await _connects(server, ca=other.certificate_pem)
        assert isinstance(refused, IdentityError)
        assert "ca=" in str(refused)
        named = RpcClient.connect(
            server.address, ca=identity.certificate_pem, server_name="elsewhere.example", timeout=5
        )
        assert isinstance(await outcome(named._connect()), IdentityError)
        await _gone(server)
        assert heard == []


@real
async def test_insecure_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    async with server_builder().build() as server:
        with caplog.at_level(logging.WARNING):
            assert isinstance(await _connects(server, insecure=True), RpcClient)
        assert any("insecure=True" in record.message for record in caplog.records)


@real
async def test_the_server_learns_why_it_was_refused() -> None:
    codes: list[int] = []
    async with server_builder().build() as server:
        accept = server._accept

        def watch(connection: Any) -> Any:
            peer = accept(connection)
            peer._closed.add_done_callback(lambda _: codes.append(peer.ended.code))
            return peer

        server._listener._router._on_connection = watch  # type: ignore[union-attr]
        await _connects(server, fingerprint="sha256:" + "00" * 32)
        await _gone(server)
        await asyncio.sleep(0)
    assert codes == [Close.IDENTITY_REFUSED]


@real
async def test_a_silent_server() -> None:
    """It answers the handshake and says no HELLO."""
    from echostream.transport.endpoint import Endpoint
    from echostream.transport.quic.acceptor import QuicAcceptor
    from echostream.transport.quic.options import QuicOptions

    class Silent:
        def engine_event(self, event: Any) -> None: ...

        idle = True

        def before_flush(self, now: float) -> None: ...

    identity = Identity.ephemeral()
    acceptor = QuicAcceptor(QuicOptions(), identity.certificate_pem, identity.private_key_pem)
    endpoint = await Endpoint.bind(
        "127.0.0.1:0", acceptor=acceptor, on_connection=lambda connection: Silent()
    )
    connecting = RpcClient.connect(endpoint.address, timeout=0.5, fingerprint=identity.fingerprint)
    failed = await outcome(connecting._connect())
    assert isinstance(failed, ConnectionClosed)
    assert "did not say HELLO" in str(failed)
    await endpoint.close()
