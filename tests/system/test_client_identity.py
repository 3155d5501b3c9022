"""Who the client is, over real QUIC: nothing of it is served before it was taken."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from rpc_support import outcome, real, server_builder

from echostream import (
    ConfigurationError,
    ConnectionClosed,
    Identity,
    IdentityError,
    PermissionDenied,
    RpcClient,
    RpcServer,
    ServerBuilder,
    Session,
    StreamReceiver,
    handler,
    listener,
    stream_handler,
)
from echostream.rpc.authentication import Credentials
from echostream.testing import connected_pair
from echostream.transport import client_proof
from echostream.transport.client_proof import prove, verify_proof
from echostream.transport.ticket import Ticket

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@handler("open")
async def open_to_all(session: Session) -> list[str]:
    ran.append("open")
    return [session.fingerprint or "", *sorted(session.grants)]


@handler("vault", requires="vault")
async def vault() -> str:
    ran.append("vault")
    return "gold"


@listener("note", requires=["vault", "notes"])
async def note(text: str) -> None:
    ran.append(f"note {text}")


@stream_handler("feed", requires="vault")
async def feed(stream: StreamReceiver) -> None:
    ran.append("feed")
    async for _ in stream:
        pass


async def connected(session: Session) -> None:
    ran.append("on_connect")


def guarded(authorize: Any = None, **options: Any) -> ServerBuilder:
    builder = server_builder().handler(open_to_all).handler(vault).listener(note)
    return builder.stream_handler(feed).on_connect(connected).authenticate(authorize, **options)


async def by_token(session: Session, credentials: Credentials) -> list[str] | None:
    ran.append("authorize")
    if credentials.has_token("gold card"):
        return ["vault", "notes"]
    if credentials.has_token("card"):
        return None
    raise PermissionDenied("no such card")


async def visit(server: RpcServer, **who: Any) -> Any:
    connecting = RpcClient.connect(server.address, fingerprint=server.fingerprint, **who)
    return await outcome(connecting._connect())


@real
async def test_tokens_and_what_they_grant() -> None:
    async with guarded(by_token).build() as server:
        rich = await visit(server, token="gold card")
        assert await rich.request("open") == ["", "notes", "vault"]
        assert await rich.request("vault") == "gold"
        await rich.emit("note", "a")
        await (await rich.create_stream("feed")).end()
        await rich.close()
        assert {"note a", "feed"} <= set(ran)
        ran.clear()

        poor = await visit(server, token="card")
        assert await poor.request("open") == [""]
        refused = await outcome(poor.request("vault"))
        assert isinstance(refused, PermissionDenied)
        assert "requires vault" in refused.message
        await poor.emit("note", "b")
        stream = await outcome(_open_stream(poor))
        assert isinstance(stream, PermissionDenied)
        await poor.close()
        assert ran == ["authorize", "on_connect", "open"]


async def _open_stream(client: RpcClient) -> None:
    stream = await client.create_stream("feed")
    while True:
        await stream.send(b"x")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("who", [{}, {"token": "stolen"}, {"identity": Identity.ephemeral()}])
@real
async def test_a_client_that_is_not_taken_gets_nothing(who: dict) -> None:
    async with guarded(by_token).build() as server:
        refused = await visit(server, **who)
        assert isinstance(refused, IdentityError)
        assert "no such card" in str(refused)
        assert "token=" in str(refused)
        assert server.statistics().sessions == 0
    assert ran == ["authorize"]


@real
async def test_a_key_is_proved() -> None:
    friend, stranger = Identity.ephemeral(), Identity.ephemeral()

    async def friends(session: Session, credentials: Credentials) -> str | None:
        if credentials.fingerprint != friend.fingerprint:
            raise PermissionDenied("only friends")
        return "vault"

    async with guarded(friends).build() as server:
        client = await visit(server, identity=friend)
        assert await client.request("open") == [friend.fingerprint, "vault"]
        await client.close()
        assert isinstance(await visit(server, identity=stranger), IdentityError)
        assert isinstance(await visit(server), IdentityError)
    assert ran == ["on_connect", "open"]


@pytest.mark.parametrize("relayed", ["another server", "another connection", "another key"])
@real
async def test_a_stolen_proof_is_worth_nothing(
    relayed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server in between got, or what was heard of an earlier connection, or the certificate
    of one key with the signature of another."""
    friend, thief = Identity.ephemeral(), Identity.ephemeral()

    def forge(identity: Identity, server: str, challenge: bytes) -> dict[str, Any]:
        if relayed == "another server":
            return prove(friend, "sha256:" + "00" * 32, challenge)
        if relayed == "another connection":
            return prove(friend, server, bytes(32))
        return {**prove(thief, server, challenge), "chain": prove(friend, server, b"")["chain"]}

    monkeypatch.setattr("echostream.rpc.authentication.prove", forge)

    async def anybody(session: Session, credentials: Credentials) -> None:
        ran.append("authorize")

    async with guarded(anybody).build() as server:
        refused = await visit(server, identity=thief)
        assert isinstance(refused, IdentityError)
        assert "another key, for another server" in str(refused)
    assert ran == []


@real
async def test_a_client_cannot_talk_the_server_out_of_asking() -> None:
    """A client that ignores the challenge and calls at once: its calls wait, and are never run."""
    from rpc_support import Frame, raw_client

    from echostream.protocol import frames
    from echostream.protocol.frames import encode_frame

    async with raw_client(guarded(by_token)) as (_, raw):
        end = frames.END
        raw.send(encode_frame(frames.REQUEST, 0, b"\xc0", end, "open"))
        raw.send(encode_frame(frames.EVENT, 1, b"\xa1x", 0, "note"))
        closed = await raw.closed()
        assert closed.code == 5  # AUTHENTICATION_FAILED
        answers: list[Frame] = raw.of(frames.RESPONSE)
        assert answers == []
    assert ran == ["authorize"]


@pytest.mark.parametrize(
    "auth",
    [
        {"scheme": "magic"},
        {"scheme": "bearer", "token": 7},
        {"scheme": "bearer", "token": "x" * 8193},
        {"scheme": "certificate"},
        {"scheme": "certificate", "chain": [], "signature": b""},
        {"scheme": "certificate", "chain": [b"x"], "signature": b""},
        {"scheme": "certificate", "chain": [b"x"] * 6, "signature": b""},
        {"scheme": "certificate", "chain": b"x", "signature": 1},
    ],
)
@real
async def test_malformed_credentials_are_refused(
    auth: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from echostream.rpc.peer import Peer

    greet = Peer.greet
    monkeypatch.setattr(
        Peer,
        "greet",
        lambda self, **kwargs: greet(
            self, **({"auth": auth} if self.connection.engine.is_client else kwargs)
        ),
    )
    async with guarded(by_token).build() as server:
        assert isinstance(await visit(server), IdentityError)
    assert ran == []


@real
async def test_it_takes_no_longer_than_allowed(caplog: pytest.LogCaptureFixture) -> None:
    async def ponder(session: Session, credentials: Credentials) -> None:
        await asyncio.sleep(3600)

    async def fail(session: Session, credentials: Credentials) -> None:
        raise RuntimeError("a text that stays here")

    async with guarded(ponder, timeout=0.2).build() as server:
        refused = await visit(server, token="x")
        assert isinstance(refused, IdentityError)
        assert "0.2 s" in str(refused)
    async with guarded(fail).build() as server:
        with caplog.at_level(logging.ERROR):
            refused = await visit(server, token="x")
        assert isinstance(refused, IdentityError)
        assert "stays here" not in str(refused)
        assert "authenticating" in caplog.text
    assert ran == []


@real
async def test_a_server_that_does_not_ask_learns_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "echostream.rpc.authentication.prove", lambda *_: asked.append("proved") or {}
    )
    async with server_builder().handler(open_to_all).build() as server:
        client = await visit(server, identity=Identity.ephemeral())
        assert await client.request("open") == [""]
        await client.close()
    assert asked == []


@real
async def test_a_ticket_brings_its_token() -> None:
    async with guarded(by_token).build() as server:
        ticket = Ticket((server.address,), server.fingerprint, token="card")
        async with RpcClient.connect(ticket) as client:
            assert await client.request("open") == [""]


@real
async def test_in_memory_as_over_quic() -> None:
    client = RpcClient.builder().credentials(token="gold card", identity=Identity.ephemeral())
    async with connected_pair(guarded(by_token), client) as (server, connected_client):
        assert await connected_client.request("vault") == "gold"
        (session,) = server.context.sessions
        assert session.fingerprint is not None


# --- authorities ---


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(
    subject: str,
    key: Any,
    issuer: tuple[x509.Certificate, Any] | None = None,
    *,
    days: int = 30,
    is_ca: bool = False,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.now(UTC)
    issuer_name, issuer_key = (name, key) if issuer is None else (issuer[0].subject, issuer[1])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
        )
        .add_extension(
            x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False), True
        )
    )
    if not is_ca:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def identity_of(key: Any, *chain: x509.Certificate) -> Identity:
    return Identity(
        certificate_pem=pem(*chain),
        private_key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        fingerprint=client_proof.fingerprint_of(chain[0].public_bytes(Encoding.DER)),
        not_after=chain[0].not_valid_after_utc,
    )


@real
async def test_clients_of_an_authority() -> None:
    root_key, between_key, key = _key(), _key(), _key()
    root = certificate("root", root_key, is_ca=True)
    between = certificate("between", between_key, (root, root_key), is_ca=True)
    member = certificate("member.example", key, (between, between_key))
    names: list[tuple[str, ...]] = []

    async def authorize(session: Session, credentials: Credentials) -> str:
        names.append(credentials.names)
        return "vault"

    async with guarded(authorize, ca=pem(root)).build() as server:
        client = await visit(server, identity=identity_of(key, member, between))
        assert await client.request("vault") == "gold"
        await client.close()
        assert names == [("member.example",)]
        ran.clear()

        other_root_key = _key()
        other_root = certificate("root", other_root_key, is_ca=True)
        impostors = {
            "no certificate": {},
            "a token": {"token": "x"},
            "self-signed": {"identity": Identity.ephemeral()},
            "without the one between": {"identity": identity_of(key, member)},
            "other authority": {
                "identity": identity_of(
                    key, certificate("member.example", key, (other_root, other_root_key))
                )
            },
            "expired": {
                "identity": identity_of(
                    key, certificate("member.example", key, (root, root_key), days=-1)
                )
            },
            "for servers": {
                "identity": identity_of(
                    key,
                    certificate(
                        "member.example",
                        key,
                        (root, root_key),
                        usage=ExtendedKeyUsageOID.SERVER_AUTH,
                    ),
                )
            },
            "issued by a member": {
                "identity": identity_of(
                    between_key,
                    certificate("guest", between_key, (member, key)),
                    member,
                    between,
                )
            },
        }
        for why, who in impostors.items():
            refused = await visit(server, **who)
            assert isinstance(refused, IdentityError), why
            assert "client" in str(refused)
        assert ran == []


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa", "ed25519", "ed448"])
def test_every_kind_of_key_proves_itself(kind: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed448, ed25519, rsa

    key: Any = {
        "p256": _key,
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "ed448": ed448.Ed448PrivateKey.generate,
    }[kind]()
    authority = _key()
    issued = certificate("a.example", key, (certificate("root", authority, is_ca=True), authority))
    identity = identity_of(key, issued)
    proof = prove(identity, "sha256:x", b"c" * 32)
    good = (proof["chain"], proof["signature"], "sha256:x", b"c" * 32)
    assert verify_proof(*good) == identity.fingerprint
    for at, other in ((1, bytes(len(proof["signature"]))), (2, "sha256:y"), (3, b"d" * 32)):
        with pytest.raises(IdentityError, match="does not hold"):
            verify_proof(*good[:at], other, *good[at + 1 :])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RpcServer.builder().authenticate(),
        lambda: RpcServer.builder().authenticate(lambda session, credentials: None),
        lambda: RpcServer.builder().authenticate(by_token).authenticate(by_token),
        lambda: RpcServer.builder().authenticate(ca="no/such/file.pem"),
        lambda: RpcServer.builder().authenticate(ca=b"nonsense"),
        lambda: RpcServer.builder().authenticate(by_token, timeout=0),
        lambda: server_builder().handler(vault).build(),
        lambda: RpcClient.builder().connect("h:1").handler(vault).build(),
        lambda: RpcClient.connect("h:1", token=""),
        lambda: RpcClient.connect("h:1", identity="me"),  # type: ignore[arg-type]
        lambda: handler("x", requires=7),  # type: ignore[arg-type]
        lambda: handler("x", requires=[""]),
    ],
)
def test_what_cannot_work_is_said_at_once(wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        wrong()


@real
async def test_a_refusal_is_no_lost_connection() -> None:
    async with guarded(by_token).build() as server:
        refused = await visit(server, token="stolen")
        assert isinstance(refused, IdentityError)
        assert isinstance(refused.__cause__, ConnectionClosed)
