"""pydantic models as payloads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import pytest
from rpc_support import outcome, virtual

from echostream.builder import ServerBuilder
from echostream.errors import InvalidPayload
from echostream.protocol import payload
from echostream.rpc.schema import DESCRIBE, asyncapi
from echostream.testing import connected_pair

pydantic = pytest.importorskip("pydantic")


class Address(pydantic.BaseModel):
    city: str


class User(pydantic.BaseModel):
    name: str = pydantic.Field(alias="userName")
    age: int
    home: Address
    since: datetime
    id: UUID

    @pydantic.field_validator("age")
    @classmethod
    def is_grown(cls, age: int) -> int:
        if age < 18:
            raise ValueError("the secret rule")
        return age


USER = User(
    userName="Ada",
    age=36,
    home=Address(city="London"),
    since=datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC),
    id=UUID(int=7),
)


class Users(Protocol):
    async def add(self, user: User) -> User: ...

    def all(self, city: str | None) -> AsyncIterator[User]: ...


class Store:
    async def add(self, user: User) -> User:
        assert type(user) is User
        return user.model_copy(update={"age": user.age + 1})

    async def all(self, city: str | None) -> AsyncIterator[User]:
        yield USER


@virtual
async def test_handlers_and_typed_clients_speak_models() -> None:
    async with connected_pair(ServerBuilder().implement(Users, Store()).introspection()) as pair:
        _, client = pair
        users = client.bind(Users)
        found = await users.add(USER)
        assert type(found) is User
        assert found == USER.model_copy(update={"age": 37})
        assert [user async for user in users.all(None)] == [USER]
        plain = await client.request("users.add", USER)
        assert plain["userName"] == "Ada"
        assert plain["home"] == {"city": "London"}
        result = await outcome(client.request("users.add", plain | {"age": "young"}))
        assert isinstance(result, InvalidPayload)
        assert "`age`" in result.message
        result = await outcome(client.request("users.add", plain | {"age": 3}))
        assert isinstance(result, InvalidPayload)
        assert "`age`" in result.message
        assert "secret" not in result.message
        result = await outcome(client.request("users.add", plain | {"home": {}}))
        assert "`home.city`" in result.message
        description = await client.request(DESCRIBE)
        (add,) = [each for each in description["methods"] if each["name"] == "users.add"]
        assert add["argument"]["properties"]["age"]["type"] == "integer"
        assert add["argument"]["properties"]["home"] == {"$ref": "#/components/schemas/Address"}
        schemas = asyncapi(description, title="users")["components"]["schemas"]
        assert schemas["Address"]["required"] == ["city"]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(list[User], [USER]), (dict[str, User], {"a": USER}), (User | None, None), (User, USER)],
)
def test_inside_of_others(annotation: Any, value: Any) -> None:
    assert payload.decoder(annotation)(payload.encode(value)) == value


def test_who_does_not_use_pydantic_does_not_import_it() -> None:
    code = (
        "import sys, echostream; from echostream.prelude import *; "
        "from echostream.protocol import payload; payload.encode({'a': 1}); "
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
