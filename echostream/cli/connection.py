"""What the client verbs share: where the server is, whom to trust, and JSON on both sides."""

from __future__ import annotations

import argparse
import base64
import json
from typing import Any

import numpy as np

from echostream.builder import ClientBuilder
from echostream.cli.errors import BadInput
from echostream.errors import IdentityError, InvalidPayload
from echostream.protocol import payload as payloads
from echostream.transport.identity import Identity
from echostream.transport.trust import Trust

__all__ = ["add_connection_arguments", "client_builder", "json_text", "parse_json"]


def add_connection_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """ADDR, the trust options and ``--timeout``. Without an ``optional`` ADDR it is ``None``."""
    parser.add_argument(
        "address",
        metavar="ADDR",
        nargs="?" if optional else None,
        help="the server: HOST:PORT, [IPV6]:PORT or a ticket",
    )
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=10.0, help="seconds to wait (default: 10)"
    )
    parser.add_argument(
        "--identity", action="store_true", help="show this user's key to a server that asks"
    )
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--fingerprint", metavar="SHA256", help="the server's key has this one")
    trust.add_argument("--ca", metavar="FILE", help="the server's authority, a certificate in PEM")
    trust.add_argument("--insecure", action="store_true", help="believe whoever answers")


def client_builder(args: argparse.Namespace) -> ClientBuilder:
    """A client for the arguments. Raises ``BadInput`` or ``ConfigurationError``."""
    if args.ca is not None:
        try:
            Trust(ca=args.ca).plan("localhost", 0, "127.0.0.1")
        except IdentityError as exc:
            raise BadInput(f"--ca: {exc}") from None
    return (
        ClientBuilder()
        .connect(args.address, timeout=args.timeout)
        .credentials(identity=Identity.self_signed() if args.identity else None)
        .trust(fingerprint=args.fingerprint, ca=args.ca, insecure=args.insecure)
    )


def parse_json(text: str | None) -> Any:
    """A payload from the command line; ``None`` without one. Raises ``BadInput``."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        payloads.encode(value)
    except ValueError as exc:
        raise BadInput(
            f"{text!r} is not JSON: {exc} (a text needs its quotes: '\"alice\"')"
        ) from None
    except RecursionError:
        raise BadInput("the JSON is nested too deeply") from None
    except InvalidPayload as exc:
        raise BadInput(f"the JSON cannot be sent: {exc.message}") from None
    return value


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A payload as JSON: arrays as lists, bytes in base64, times as ISO 8601 texts."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, complex):
        return [value.real, value.imag]
    return str(value)
