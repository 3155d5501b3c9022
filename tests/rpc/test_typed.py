"""Interface classes bound to a connection, and what a side says about itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from rpc_support import session_of, virtual

from echostream import (
    ConfigurationError,
    InvalidPayload,
    MethodNotFound,
    RpcClient,
    RpcServer,
    Session,
    StreamReceiver,
)
from echostream.rpc.schema import DESCRIBE, asyncapi
from echostream.rpc.typed import event, named
from echostream.testing import connected_pair

PROJECT = Path(__file__).parents[2]


@dataclass
class Note:
    text: str
    number: int = 0


class Notes(Protocol):
    """What the server offers."""

    async def add(self, text: str) -> Note: ...

    async def count(self) -> int: ...

    async def clear(self) -> None: ...

    def watch(self, since: int = 0) -> AsyncIterator[Note]: ...

    async def total(self, numbers: AsyncIterator[int]) -> int: ...

    @event
    async def opened(self, who: str) -> None: ...

    @named("odd-name")
    async def odd(self) -> str: ...


class Book:
    """Implements it."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.visitors: list[str] = []

    async def add(self, text: str) -> Note:
        """Add a note.

        More about it."""
        self.notes.append(Note(text, len(self.notes)))
        return self.notes[-1]

    async def count(self) -> int:
        return len(self.notes)

    async def clear(self) -> None:
        self.notes.clear()

    async def watch(self, since: int = 0) -> AsyncIterator[Note]:
        for note in self.notes[since:]:
            yield note

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([n async for n in numbers])

    async def opened(self, who: str) -> None:
        self.visitors.append(who)

    async def odd(self) -> str:
        return "odd"


async def numbers() -> AsyncIterator[int]:
    yield 1
    yield 2


@pytest.mark.parametrize("direction", ["up", "down"])
@virtual
async def test_an_interface_is_bound_and_implemented(direction: str) -> None:
    book = Book()
    server, client = RpcServer.builder(), RpcClient.builder()
    (server if direction == "up" else client).implement(Notes, book)  # type: ignore[attr-defined]
    async with connected_pair(server, client) as (started, connected):
        side = connected if direction == "up" else await session_of(started)
        notes: Notes = side.bind(Notes)
        assert await notes.add("x") == Note("x", 0)
        assert await notes.add(text="y") == Note("y", 1)
        assert await notes.count() == 2
        assert [note async for note in notes.watch(1)] == [Note("y", 1)]
        assert [note async for note in notes.watch()] == [Note("x", 0), Note("y", 1)]
        assert await notes.total(numbers()) == 3
        assert await notes.odd() == "odd"
        await notes.opened("Ada")
        assert await side.request("notes.odd-name") == "odd"
        await notes.add("z", timeout=5.0)  # type: ignore[call-arg]
        with pytest.raises(InvalidPayload):
            await notes.add(5)  # type: ignore[arg-type]
        assert await notes.clear() is None  # type: ignore[func-returns-value]
        with pytest.raises(TypeError, match="'text'"):
            await notes.add()  # type: ignore[call-arg]
        assert book.visitors == ["Ada"]


@virtual
async def test_interfaces_that_cannot_work() -> None:
    class Empty(Protocol):
        pass

    class TwoValues(Protocol):
        async def add(self, a: int, b: int) -> int: ...

    class NotAsync(Protocol):
        def add(self, a: int) -> int: ...

    @named("")
    class Bare(Protocol):
        async def add(self, a: int) -> int: ...

    async with connected_pair() as (_, client):
        for wrong in (Empty, TwoValues, NotAsync):
            with pytest.raises(ConfigurationError):
                client.bind(wrong)
        with pytest.raises(ConfigurationError, match="is a class"):
            client.bind(lambda: None)
        with pytest.raises(MethodNotFound, match="no handler 'add'"):
            await client.bind(Bare).add(1)


SNIPPET = """
from collections.abc import AsyncIterator
from typing import Protocol

from echostream import RpcClient, ServerBuilder

class Notes(Protocol):
    async def add(self, text: str) -> int: ...
    def watch(self, since: int) -> AsyncIterator[str]: ...

class Wrong:
    async def add(self, text: int) -> int:
        return 1

async def use(client: RpcClient, builder: ServerBuilder) -> None:
    notes = client.bind(Notes)
    reveal_type(notes)
    number: int = await notes.add("x")
    async for text in notes.watch(1):
        reveal_type(text)
    await notes.add(5)  # wrong
    notes.delete()  # wrong
    builder.implement(Notes, Wrong())  # wrong to mypy
    numbers = client.request_stream("x", returns=int)
    async for n in numbers:
        reveal_type(n)
"""


def test_a_type_checker_sees_the_interface(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(snippet)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    lines = [line.partition("snippet.py:")[2] for line in done.stdout.splitlines()]
    wrong = [n for n, line in enumerate(SNIPPET.split("\n"), 1) if "# wrong" in line]
    errors = [line for line in lines if ": error: " in line]
    assert [int(line.split(":")[0]) for line in errors] == wrong, done.stdout + done.stderr
    revealed = [line.partition('"')[2] for line in lines if "Revealed" in line]
    assert revealed == ['snippet.Notes"', 'str"', 'int"']


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_sees_it_too(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    # It takes the object for a union of both classes where mypy refuses it.
    options = ["--pythonpath", sys.executable, "--outputjson", "--project", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pyright", *options, str(snippet)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])},
        check=False,
    )
    said = json.loads(done.stdout)["generalDiagnostics"]
    wrong = [n for n, line in enumerate(SNIPPET.split("\n"), 1) if line.endswith("# wrong")]
    errors = [each for each in said if each["severity"] == "error"]
    assert [each["range"]["start"]["line"] + 1 for each in errors] == wrong, done.stdout
    revealed = [each["message"] for each in said if each["severity"] == "information"]
    assert [text.rpartition(" is ")[2] for text in revealed] == ['"Notes"', '"str"', '"int"']


# Introspection.


async def doubled(session: Session, values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values * 2


async def anything(value: Any) -> Any:
    return value


async def told(note: Note) -> None:
    """A note was made."""


async def media(session: Session, stream: StreamReceiver) -> None:
    async for _ in stream:
        pass


@virtual
async def test_a_side_describes_itself() -> None:
    server = RpcServer.builder().implement(Notes, Book()).introspection()  # type: ignore[type-var]
    server.handler("doubled", doubled).handler("anything", anything)
    server.listener("told", told).stream_handler("media", media)
    async with connected_pair(server) as (_, client):
        found = await client.request(DESCRIBE)
    methods = {entry["name"]: entry for entry in found["methods"]}
    assert DESCRIBE not in methods
    assert {name: entry["shape"] for name, entry in methods.items()} == {
        "anything": "unary",
        "doubled": "unary",
        "notes.add": "unary",
        "notes.clear": "unary",
        "notes.count": "unary",
        "notes.odd-name": "unary",
        "notes.total": "client_streaming",
        "notes.watch": "server_streaming",
    }
    add = methods["notes.add"]
    assert add["argument"] == {"type": "string"}
    assert add["result"] == {"$ref": "#/components/schemas/Note"}
    assert add["doc"].startswith("Add a note.")
    assert methods["notes.watch"]["result"] == add["result"]
    assert "argument" not in methods["notes.count"]
    assert methods["doubled"]["argument"]["title"] == "numpy.ndarray"
    assert found["schemas"]["Note"]["required"] == ["text"]
    assert [entry["name"] for entry in found["events"]] == ["notes.opened", "told"]
    assert [entry["name"] for entry in found["streams"]] == ["media"]
    document = asyncapi(found, title="Notes")
    assert document["asyncapi"] == "3.0.0"
    operation = document["operations"]["notes.add"]
    assert operation["summary"] == "Add a note."
    for reference in (operation["channel"]["$ref"], operation["messages"][0]["$ref"]):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


@virtual
async def test_who_was_not_told_to_says_nothing() -> None:
    async with connected_pair() as (_, client):
        with pytest.raises(MethodNotFound):
            await client.request(DESCRIBE)
