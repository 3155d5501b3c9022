"""What a side offers, as data: names, shapes and the JSON Schema of every payload; and the same as
an AsyncAPI document."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from echostream.protocol.payload import json_schemas

if TYPE_CHECKING:
    from echostream.rpc.dispatch import Routes
    from echostream.rpc.registry import Registry, Route

__all__ = ["DESCRIBE", "asyncapi", "describe"]

DESCRIBE = "echostream.describe"
"""The method that answers with :func:`describe`, where a side has ``.introspection()``."""
_ANY: dict[str, Any] = {}


def describe(routes: Routes) -> dict[str, Any]:
    """``methods``, ``events`` and ``streams`` of one side, each with ``name``, ``doc`` and schemas
    of ``argument`` and ``result`` (of one item where ``shape`` says that there are many);
    ``schemas``: what those refer to."""
    wanted: list[tuple[dict[str, Any], str, Any]] = []
    methods = []
    for route in _sorted(routes.handlers):
        entry = {**_entry(route), "shape": _shape(route)}
        if route.decode is not None:
            wanted.append((entry, "argument", route.annotation))
        wanted.append((entry, "result", route.result))
        methods.append(entry)
    events = []
    for route in _sorted(routes.listeners):
        entry = _entry(route)
        if route.decode is not None:
            wanted.append((entry, "argument", route.annotation))
        events.append(entry)
    streams = [
        {**_entry(route), "formats": [str(each) for each in route.formats]}
        for route in _sorted(routes.streams)
    ]
    found, schemas = json_schemas([annotation for _, _, annotation in wanted])
    for (entry, key, _), schema in zip(wanted, found, strict=True):
        entry[key] = schema
    return {"methods": methods, "events": events, "streams": streams, "schemas": schemas}


def asyncapi(description: dict[str, Any], *, title: str, version: str = "1.0.0") -> dict[str, Any]:
    """An AsyncAPI 3.0 document of :func:`describe`'s result."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for kind in ("methods", "events"):
        for entry in description[kind]:
            name = entry["name"]
            messages = {"argument": {"payload": entry.get("argument", _ANY)}}
            operation: dict[str, Any] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{_pointer(name)}"},
                "summary": entry["doc"].split("\n")[0],
                "messages": [{"$ref": f"#/channels/{_pointer(name)}/messages/argument"}],
            }
            if kind == "methods":
                messages["result"] = {"payload": entry["result"]}
                operation["reply"] = {
                    "channel": {"$ref": f"#/channels/{_pointer(name)}"},
                    "messages": [{"$ref": f"#/channels/{_pointer(name)}/messages/result"}],
                }
                operation["x-echostream-shape"] = entry["shape"]
            channels[name] = {"address": name, "messages": messages}
            operations[name] = operation
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version},
        "defaultContentType": "application/msgpack",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": description["schemas"]},
    }


def _sorted(registry: Registry) -> list[Route]:
    found = [registry.get(name) for name in sorted(registry)]
    return [route for route in found if route is not None and route.name != DESCRIBE]


def _entry(route: Route) -> dict[str, Any]:
    return {"name": route.name, "doc": inspect.getdoc(route.function) or ""}


def _shape(route: Route) -> str:
    if route.takes_items:
        return "bidirectional" if route.yields else "client_streaming"
    return "server_streaming" if route.yields else "unary"


def _pointer(name: str) -> str:
    """RFC 6901, section 3."""
    return name.replace("~", "~0").replace("/", "~1")
