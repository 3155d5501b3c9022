"""The architecture, checked: imports go down only, and one dependency has one door.

Every import of every module of the package is read with `ast`, also those inside functions and
those made with `import_module("literal")`.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "echostream"

# Lowest first. A floor has rooms; modules of one room may import each other, rooms of one floor
# may not.
FLOORS: list[list[set[str]]] = [
    [{"_ext"}, {"_version"}],
    [{"codes", "errors", "types"}, {"runner"}],
    [{"protocol"}, {"media"}],
    [{"transport"}, {"discovery"}],
    [{"rpc", "plugin"}],
    [{"server", "client", "builder", "finding", "pairing"}],
    [{"contrib"}, {"testing"}, {"sync"}],
    [{"cli"}, {"pytest_plugin"}],
    [{"", "prelude"}],  # the facade: `echostream` itself
]

# Names in annotations only (`if TYPE_CHECKING:`) may point up here, because a plugin is handed the
# builder that installs it.
ANNOTATIONS_UP = {
    ("echostream.plugin.base", "echostream.builder"),
}

# Third-party package -> the modules that may import it (a name stands for all below it).
DOORS: dict[str, set[str]] = {
    "aioquic": {"echostream.transport.quic", "echostream._ext.quic_path"},
    "av": {"echostream.contrib"},
    "click": {"echostream.cli"},
    "cryptography": {"echostream.transport"},
    "ifaddr": {"echostream.discovery"},
    "matplotlib": {"echostream.media.lab.plot"},
    "msgpack": {"echostream.protocol.payload"},
    "msgspec": {"echostream.protocol.payload"},
    "nats": {"echostream.contrib"},
    "numpy": {"echostream"},
    "opentelemetry": {"echostream.contrib"},
    "prometheus_client": {"echostream.contrib"},
    "pytest": {"echostream.pytest_plugin"},
    "rich": {"echostream.cli"},
    "segno": {"echostream.cli"},
    "sounddevice": {"echostream.contrib"},
    "soundfile": {"echostream.contrib"},
    "soxr": {"echostream.contrib"},
    "spake2": {"echostream.transport.code_exchange"},
    "typing_extensions": {"echostream._ext", "echostream.protocol"},
    "uvloop": {"echostream.runner"},
    "zeroconf": {"echostream.discovery"},
}


class Import(NamedTuple):
    target: str
    line: int
    annotation_only: bool


def imports_of(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import in ``source``, as the dotted name of what is imported."""
    package = module if is_package else module.rpartition(".")[0]

    def walk(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from walk(child, True)
            for child in node.orelse:
                yield from walk(child, typing_only)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, typing_only)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in {"import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield Import(str(node.args[0].value), node.lineno, typing_only)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, typing_only)

    yield from walk(ast.parse(source), False)


def place_of(dotted: str) -> tuple[int, set[str]]:
    """Floor and room of a module or of a name imported from one."""
    first = dotted.split(".")[1] if "." in dotted else ""
    for number, rooms in enumerate(FLOORS):
        for room in rooms:
            if first in room:
                return number, room
    if (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists():
        raise AssertionError(f"echostream.{first} has no place in FLOORS")
    return place_of("echostream")  # a public name, taken from the facade


def within(module: str, doors: set[str]) -> bool:
    return any(module == door or module.startswith(door + ".") for door in doors)


def faults_of(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of one module, in words."""
    faults = []
    floor, room = place_of(module)
    for target, line, annotation_only in imports_of(source, module, is_package=is_package):
        where = f"{module}:{line} imports {target}"
        root = target.split(".")[0]
        if root == "echostream":
            if annotation_only and any(
                module == source_module and within(target, {allowed})
                for source_module, allowed in ANNOTATIONS_UP
            ):
                continue
            target_floor, target_room = place_of(target)
            if target_floor > floor:
                faults.append(f"{where}: up, from floor {floor} to {target_floor}")
            elif target_floor == floor and target_room is not room:
                faults.append(f"{where}: into another room of its floor")
        elif root in DOORS:
            if not within(module, DOORS[root]):
                faults.append(f"{where}: its door is {', '.join(sorted(DOORS[root]))}")
        elif root not in sys.stdlib_module_names:
            faults.append(f"{where}: a dependency without a door")
    return faults


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_and_through_the_doors(path: Path) -> None:
    module = module_name(path)
    assert faults_of(path.read_text(), module, is_package=path.stem == "__init__") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("echostream.media.jitter", "import echostream.rpc.session"),
        ("echostream.media.jitter", "from echostream.protocol import frames"),
        ("echostream.media.jitter", "def f():\n    from echostream.transport.quic import engine"),
        ("echostream.media.jitter", "from ..protocol import frames"),
        ("echostream.media.jitter", "from .. import server"),
        ("echostream.media.jitter", "from echostream import RpcServer"),
        ("echostream.media.jitter", "import msgpack"),
        ("echostream.media.jitter", "import importlib\nimportlib.import_module('aioquic.quic')"),
        ("echostream.protocol.frames", "import msgspec.json"),
        ("echostream.transport.quicker", "import aioquic"),
        ("echostream.discovery.service", "from echostream.transport import identity"),
        ("echostream.rpc.session", "import requests"),
        ("echostream.errors", "if TYPE_CHECKING:\n    from echostream.server import RpcServer"),
        ("echostream.plugin.base", "from echostream.builder import ServerBuilder"),
        ("echostream.cli.main", "from echostream import RpcServer"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(faults_of(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("echostream.media.jitter", "from echostream.media.frame import AudioFrame"),
        ("echostream.media.jitter", "from . import frame\nfrom .frame import AudioFrame"),
        ("echostream.media.jitter", "from echostream._ext import jitter_ring\nimport numpy as np"),
        ("echostream.protocol.payload", "import msgpack\nimport msgspec"),
        ("echostream.transport.quic.engine", "from aioquic.quic.connection import QuicConnection"),
        ("echostream.rpc.session", "from echostream.errors import RpcError\nimport asyncio"),
        (
            "echostream.plugin.base",
            "if TYPE_CHECKING:\n    from echostream.builder import ServerBuilder",
        ),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert faults_of(source, module) == []


def test_every_declared_dependency_has_a_door() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in project["dependencies"]}
    assert {name.replace("-", "_") for name in names} <= set(DOORS)
