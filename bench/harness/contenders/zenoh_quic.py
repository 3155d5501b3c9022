"""eclipse-zenoh over a QUIC link of its own (Rust, threads): a call is a get that a queryable
answers, an event a put. Answers come on zenoh's threads and are handed to the event loop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zenoh  # type: ignore[import-not-found, unused-ignore]

from bench.harness.contract import HOST, Certificate, Client, Connection, Server

__all__ = ["client", "server"]

_MATCH_S = 5.0
_ECHO, _EVENTS = "bench/echo", "bench/events"


def server(certificate: Certificate, variant: str) -> Server:
    """The listening side."""
    return _Server(certificate)


def client(certificate: Certificate, variant: str) -> Client:
    """The connecting side."""
    return _Client(certificate)


def _configuration(mode: str, **settings: Any) -> Any:
    configuration = zenoh.Config()
    for path, value in {
        "mode": mode,
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        **settings,
    }.items():
        configuration.insert_json5(path, json.dumps(value))
    return configuration


def _tls(**files: Path) -> dict[str, Any]:
    return {"transport/link/tls": {name: str(path) for name, path in files.items()}}


def _direct(callback: Callable[[Any], None]) -> Any:
    """Run ``callback`` on zenoh's own thread; by default every callback gets a new one, which is
    faster for the many samples of a subscriber and slower for the one answer of a get."""
    return zenoh.handlers.Callback(callback, indirect=False)


class _Server(Server):
    def __init__(self, certificate: Certificate) -> None:
        super().__init__()
        self._tls = _tls(
            root_ca_certificate=certificate.ca,
            listen_certificate=certificate.chain,
            listen_private_key=certificate.key,
        )

    async def start(self) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((HOST, 0))  # zenoh does not tell which port it got
            port = int(probe.getsockname()[1])
        endpoints = {"listen/endpoints": [f"quic/{HOST}:{port}"]}
        self._session = await asyncio.to_thread(
            zenoh.open, _configuration("peer", **self._tls, **endpoints)
        )
        self._queryable = self._session.declare_queryable(
            _ECHO, _direct(lambda query: query.reply(_ECHO, query.payload))
        )
        self._subscriber = self._session.declare_subscriber(
            _EVENTS,
            lambda sample: self.received.add(1),
        )
        return port

    async def stop(self) -> None:
        await asyncio.to_thread(self._session.close)


class _Client(Client):
    def __init__(self, certificate: Certificate) -> None:
        self._tls = _tls(root_ca_certificate=certificate.ca)

    async def connect(self, port: int) -> Connection:
        endpoints = {"connect/endpoints": [f"quic/{HOST}:{port}"]}
        session = await asyncio.to_thread(
            zenoh.open, _configuration("client", **self._tls, **endpoints)
        )
        connection = _Connection(session)
        await connection.matched()
        return connection

    async def close(self) -> None:
        pass


class _Connection(Connection):
    def __init__(self, session: Any) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._querier = session.declare_querier(
            _ECHO,
            consolidation=zenoh.ConsolidationMode.NONE,  # answers count at once
        )
        self._publisher = session.declare_publisher(
            _EVENTS, congestion_control=zenoh.CongestionControl.BLOCK
        )

    async def matched(self) -> None:
        """Wait until the server's declarations are here: what is asked before is not answered."""
        async with asyncio.timeout(_MATCH_S):
            while not (  # noqa: ASYNC110 - zenoh's listener would come on a thread of its own
                self._querier.matching_status.matching and self._publisher.matching_status.matching
            ):
                await asyncio.sleep(0.0005)

    async def call(self, payload: bytes) -> bytes:
        answered: asyncio.Future[bytes] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            answer = reply.ok.payload.to_bytes()
            self._loop.call_soon_threadsafe(_resolve, answered, answer)

        self._querier.get(_direct(on_reply), payload=payload)
        return await answered

    async def emit(self, payload: bytes) -> None:
        self._publisher.put(payload)

    async def close(self) -> None:
        await asyncio.to_thread(self._session.close)


def _resolve(answered: asyncio.Future[bytes], answer: bytes) -> None:
    if not answered.done():
        answered.set_result(answer)
