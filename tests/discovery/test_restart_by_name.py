"""Two servers of one name are restarted in turn, under calls of a client that found them by it."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from full_size import report, sized
from rpc_support import outcome, real

from echostream import Identity, RpcClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM")
LIMIT_S = 20.0
ROUNDS = sized(1, 3)


async def started(task: dict[str, Any]) -> asyncio.subprocess.Process:
    """A server process, once it is announced."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("named_server.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(task).encode() + b"\n")
    line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
    assert line, "the server ended"
    return process


async def ended(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and the orderly end."""
    process.terminate()
    assert await asyncio.wait_for(process.wait(), LIMIT_S) == 0


@pytest.mark.usefixtures("multicast")
def test_no_accepted_call_fails_when_two_servers_are_restarted_in_turn(tmp_path: Path) -> None:
    identity = Identity.ephemeral()
    (tmp_path / "cert.pem").write_bytes(identity.certificate_pem)
    (tmp_path / "key.pem").write_bytes(identity.private_key_pem)
    (tmp_path / "key.pem").chmod(0o600)
    name = f"Rolling {secrets.token_hex(4)}"
    task = {
        "name": name,
        "calls": str(tmp_path / "calls"),
        "certificate": str(tmp_path / "cert.pem"),
        "key": str(tmp_path / "key.pem"),
    }
    answers: dict[int, Any] = {}
    served: Counter[str] = Counter()
    waited: list[float] = []

    async def one(client: RpcClient, number: int) -> None:
        begun = asyncio.get_running_loop().time()
        answer = await outcome(client.request("work", number))
        waited.append(asyncio.get_running_loop().time() - begun)
        answers[number] = answer
        if isinstance(answer, str):
            served[answer.split()[0]] += 1

    @real
    async def main() -> None:
        running = [await started(task | {"who": who}) for who in ("first-1", "second-1")]
        builder = RpcClient.builder().discover(name, timeout=LIMIT_S).reconnect()
        stopped = asyncio.Event()
        async with builder.trust(fingerprint=identity.fingerprint).build() as client:

            async def traffic() -> None:
                number = 0
                async with asyncio.TaskGroup() as group:
                    while not stopped.is_set():
                        group.create_task(one(client, number))
                        number += 1
                        await asyncio.sleep(0.01)

            async def served_by(prefix: str) -> None:
                """Until the client is at one of these; the others are gone."""
                before = served[prefix]
                while served[prefix] == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

            async with asyncio.TaskGroup() as group:
                group.create_task(traffic())
                while not served:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                for turn in range(2, 2 + ROUNDS):
                    for index, who in enumerate(("first", "second")):
                        await ended(running[index])
                        await served_by(f"{('second', 'first')[index]}-{turn - 1 + index}")
                        running[index] = await started(task | {"who": f"{who}-{turn}"})
                stopped.set()
            for process in running:
                await ended(process)

    main()
    assert {n: a for n, a in answers.items() if not str(a).endswith(f" {n}")} == {}
    ran = Counter((tmp_path / "calls").read_text().split())
    assert set(ran.values()) == {1}
    assert len(ran) == len(answers)
    assert len(served) > ROUNDS, served
    report("rolling restart by name", calls=len(answers), longest=max(waited), **served)
