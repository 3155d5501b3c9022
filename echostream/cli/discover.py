"""``echostream discover``: the servers that the local network announces."""

from __future__ import annotations

import argparse
import asyncio
import json

from echostream.cli.errors import BadInput
from echostream.discovery.service import Service
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="only servers of this name")
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=2.0, help="seconds to listen (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, one list")


def run(args: argparse.Namespace) -> int:
    """Listen and print; 1 where nothing was found. What is announced is not verified."""
    if not 0 < args.timeout <= 3600:
        raise BadInput(f"--timeout {args.timeout:g}: seconds, above 0 and up to 3600")
    found = run_loop(_listen(args.name, args.timeout))
    if args.json:
        print(json.dumps([_facts(service) for service in found], ensure_ascii=False))
    elif not found:
        from echostream.discovery.interfaces import described

        print(f"nothing announced within {args.timeout:g} s on {described()}")
    else:
        _print_table(found)
    return 0 if found else 1


async def _listen(name: str | None, seconds: float) -> list[Service]:
    from echostream.discovery.resolver import Browser

    async with Browser(name) as browser:
        try:
            async with asyncio.timeout(seconds):
                async for _ in browser:
                    pass
        except TimeoutError:
            pass
        return sorted(browser.services, key=lambda service: service.instance)


def _print_table(found: list[Service]) -> None:
    width = max(len(service.instance) for service in found)
    for service in found:
        known = service.fingerprint or "no fingerprint"
        extra = " ".join(f"{key}={value}" for key, value in service.properties.items())
        print(f"{service.instance:<{width}}  {known[:23]}…  {extra}".rstrip())
        for address in service.addresses:
            host = f"[{address}]" if ":" in address else address
            print(f"{'':<{width}}  {host}:{service.port}")
    print("Announcements are not verified: the key decides when you connect.")


def _facts(service: Service) -> dict[str, object]:
    return {
        "name": service.name,
        "instance": service.instance,
        "addresses": list(service.addresses),
        "port": service.port,
        "fingerprint": service.fingerprint,
        "id": service.id,
        "capabilities": list(service.capabilities),
        "properties": dict(service.properties),
    }
