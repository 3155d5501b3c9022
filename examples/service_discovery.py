"""Finding a service: by its address, and by the key that it is known to have.

    python examples/service_discovery.py [ADDR]

Finding servers by name on the local network (mDNS) is not in EchoStream yet. Until then a client is
given an address; several candidates are tried here in turn. An address always works, also where
multicast does not: in containers, between networks, on the Internet.

An address says where a server is, not who it is. On the first contact with a private address its
key is remembered (as SSH does); from then on another key there is refused.
"""

import sys
import tempfile
from pathlib import Path

from echostream import (
    ConfigurationError,
    ConnectionClosed,
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


def service(address: str | tuple[str, int], identity: Identity) -> RpcServer:
    return RpcServer.builder().bind(address).identity(identity).handler(name).build()


async def find(addresses: list, known_hosts: Path) -> RpcClient:
    """The first that answers."""
    for address in addresses:
        try:
            return await RpcClient.connect(address, timeout=0.5, known_hosts=known_hosts)
        except ConnectionClosed as error:
            print(f"client: not {address}: {error}")
    raise SystemExit("client: no service found")


async def main(first: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        known_hosts = Path(folder) / "known_hosts"
        async with service("127.0.0.1:0", Identity.ephemeral()) as server:
            address = server.address
            async with await find([first, address], known_hosts) as client:
                print("client: found", await client.request("service.name"))
            print("client: remembers", known_hosts.read_text().split()[1][:15] + "…")

        # Somebody else answers at the same address, with another key.
        async with service(address, Identity.ephemeral()):
            try:
                await find([address], known_hosts)
            except IdentityError as error:
                print(
                    "client: refuses:", str(error).splitlines()[0].replace(str(address[1]), "PORT")
                )


if __name__ == "__main__":
    try:
        run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9"))
    except ConfigurationError as error:
        sys.exit(f"{error}")
