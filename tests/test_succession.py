"""A new key that the old one vouches for, and everything that only looks like one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st
from rpc_support import outcome, real

from echostream import Identity, IdentityError, RpcClient, RpcServer
from echostream.transport import identity as identities
from echostream.transport.identity import rotate
from echostream.transport.known_hosts import KnownHosts
from echostream.transport.known_services import KnownServices
from echostream.transport.service_trust import ServiceTrust
from echostream.transport.succession import (
    MAX_LINKS,
    OID,
    Links,
    extension_for,
    links_in,
    predecessors,
    with_link,
)
from echostream.transport.trust import Trust


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOSTREAM_HOME", str(tmp_path / "home"))


def der(identity: Identity) -> bytes:
    return x509.load_pem_x509_certificate(identity.certificate_pem).public_bytes(Encoding.DER)


def key_of(identity: Identity) -> Any:
    return load_pem_private_key(identity.private_key_pem, password=None)


def with_links(identity: Identity, links: Links) -> Identity:
    return identities._issue("forged", [], key_of(identity), links)


def test_the_older_keys_vouch_for_the_new_one() -> None:
    first = Identity.self_signed()
    second, third = rotate(), rotate()
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    assert predecessors(der(third)) == (second.fingerprint, first.fingerprint)
    assert predecessors(der(first)) == ()
    assert Identity.self_signed() == third
    renewed = Identity.self_signed(names=["studio.example"])  # the same key, another certificate
    assert renewed.fingerprint == third.fingerprint
    assert predecessors(der(renewed)) == predecessors(der(third))


def test_only_so_many_are_carried_along() -> None:
    keys = [Identity.self_signed(), *(rotate() for _ in range(MAX_LINKS + 2))]
    expected = [each.fingerprint for each in keys[-MAX_LINKS - 1 : -1]]
    assert predecessors(der(keys[-1])) == tuple(reversed(expected))


def test_nothing_to_rotate() -> None:
    with pytest.raises(IdentityError, match="no identity"):
        rotate()


def test_forged_links_vouch_for_nothing() -> None:
    victim, thief, other = Identity.ephemeral(), Identity.ephemeral(), Identity.ephemeral()
    public, signature = with_link((), key_of(thief), key_of(other))[0]
    genuine = with_link((), key_of(victim), key_of(other))  # for another key than the thief's
    victims_key = genuine[0][0]
    for links in (
        genuine,
        ((victims_key, signature),),
        ((victims_key, b""),),
        ((victims_key, b"x" * 72),),
        ((b"", b""),),
        ((b"\x30\x00", signature),),
        (genuine[0], (public, signature)),
    ):
        assert victim.fingerprint not in predecessors(der(with_links(thief, links)))


@given(st.binary(max_size=400))
def test_an_extension_may_hold_anything(value: bytes) -> None:
    key = key_of(KEY)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(KEY.not_after.replace(year=2020))
        .not_valid_after(KEY.not_after)
        .add_extension(x509.UnrecognizedExtension(OID, value), critical=False)
        .sign(key, identities.hashes.SHA256())
    )
    assert len(links_in(certificate)) <= MAX_LINKS
    assert predecessors(certificate.public_bytes(Encoding.DER)) == ()


KEY = Identity.ephemeral()


def test_links_are_read_back() -> None:
    links = with_link((), key_of(KEY), key_of(Identity.ephemeral()))
    made = with_links(KEY, links)
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    assert links_in(certificate) == links
    assert extension_for(links).oid == OID


async def connect(server: RpcServer, **trust: Any) -> Any:
    client = await outcome(RpcClient.connect(server.address, timeout=5, **trust)._connect())
    if isinstance(client, RpcClient):
        await client.close()
    return client


@real
async def test_a_client_that_knows_the_old_key_takes_the_new_one() -> None:
    def serving(address: Any, identity: Identity) -> RpcServer:
        return RpcServer.builder().bind(address).identity(identity).build()

    old = Identity.self_signed()
    async with serving("127.0.0.1:0", old) as server:
        address = server.address
        assert isinstance(await connect(server), RpcClient)
    await asyncio.to_thread(rotate)
    new = await asyncio.to_thread(rotate)  # it missed one in between
    async with serving(address, new) as server:
        pinned = await connect(server, fingerprint=old.fingerprint)
        assert isinstance(pinned, IdentityError)  # who names a key gets that key
        assert isinstance(await connect(server), RpcClient)
        (line,) = KnownHosts().entries()
        assert line.fingerprint == new.fingerprint
    async with serving(address, old) as server:  # and there is no way back
        assert isinstance(await connect(server), IdentityError)


def test_it_holds_for_names_too() -> None:
    old = Identity.self_signed()
    KnownServices().record("Studio", old.fingerprint)
    new = rotate()
    plan: Callable[[], Any] = lambda: ServiceTrust(  # noqa: E731
        trust=Trust(), service="Studio", hint=new.fingerprint
    ).plan("10.0.0.1", 5000, "10.0.0.1")
    assert plan().accept(der(new)) == new.fingerprint
    assert plan().keys == {new.fingerprint}
    with pytest.raises(IdentityError):
        plan().accept(der(Identity.ephemeral()))
