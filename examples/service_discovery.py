"""Finding a server by its name in the local network, and knowing it by its key.

    python examples/service_discovery.py [NAME]

The server announces itself (mDNS); the client looks for the name, and has an address to fall back
on, because that works also where multicast does not: in containers and between networks.

A name says nothing about who answers: anybody in the network may announce it. At the first contact
the server's key is remembered for the name (as SSH does); from then on another key is refused.
"""

import sys
import tempfile
from pathlib import Path

from echostream import (
    ConfigurationError,
    DiscoveryError,
    Identity,
    IdentityError,
    RpcClient,
    RpcServer,
    handler,
    run,
)


@handler("service.name")
async def name() -> str:
    return "AudioService"


def service(wanted: str, identity: Identity) -> RpcServer:
    return (
        RpcServer.builder()
        .bind("127.0.0.1:0")  # "0.0.0.0:5000" is announced on all networks
        .identity(identity)
        .enable_discovery(wanted, properties={"room": "kitchen"})
        .handler(name)
        .build()
    )


async def find(wanted: str, server: RpcServer, known_hosts: Path) -> RpcClient:
    try:
        return await RpcClient.discover(
            wanted,
            timeout=3.0,
            where=lambda found: found.properties.get("room") == "kitchen",
            known_hosts=known_hosts,
        )
    except DiscoveryError as error:
        print("client: falls back on the address:", str(error).split(". ")[0])
        return await RpcClient.connect(server.address, known_hosts=known_hosts)


def remembered(known_hosts: Path) -> str:
    """What is known by name stands in a file beside what is known by address."""
    by_name = known_hosts.with_name("known_hosts.services")
    return (by_name if by_name.exists() else known_hosts).read_text().split()[1]


async def main(wanted: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        known_hosts = Path(folder) / "known_hosts"
        server = service(wanted, Identity.ephemeral())
        async with server, await find(wanted, server, known_hosts) as client:
            print("client: found", await client.request("service.name"))
        print("client: remembers", remembered(known_hosts)[:15] + "…")

        # Somebody else announces the same name, with another key.
        async with service(wanted, Identity.ephemeral()) as impostor:
            try:
                await RpcClient.discover(wanted, timeout=3.0, known_hosts=known_hosts)
            except IdentityError:
                print("client: refuses", impostor.fingerprint[:15] + "…, which it does not know")
            except DiscoveryError:
                print("client: multicast does not work here, so nobody can pretend by it")


if __name__ == "__main__":
    try:
        run(main(sys.argv[1] if len(sys.argv) > 1 else "AudioService"))
    except ConfigurationError as error:
        sys.exit(f"{error}")
