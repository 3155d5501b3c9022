"""The public names are what `docs` and users rely on: exactly these, importable, documented."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import echostream
from echostream import errors

PUBLIC = set(
    """
    RpcServer RpcClient ServerBuilder ClientBuilder Session ServerContext ClientContext
    handler listener stream_handler ServerPlugin ClientPlugin StreamSender StreamReceiver
    AudioFormat AudioFrame JitterBuffer ClockSync Playout Identity run __version__
    EchoStreamError ConfigurationError ConnectionClosed ProtocolError RpcError DeadlineExceeded
    MethodNotFound InvalidPayload Unavailable ResourceExhausted PermissionDenied Cancelled
    InternalError StreamReset DiscoveryError IdentityError
    """.split()  # noqa: SIM905 - reads as the list in the documentation
)


def test_all_is_the_public_api() -> None:
    assert len(echostream.__all__) == len(set(echostream.__all__))
    assert set(echostream.__all__) == PUBLIC
    assert set(dir(echostream)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(echostream, name)
    if name == "__version__":
        assert isinstance(value, str)
        return
    assert value.__name__ == name
    assert value.__module__.startswith("echostream.")
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        undocumented = [
            attribute
            for attribute, member in vars(value).items()
            if not attribute.startswith("_")
            and (inspect.isroutine(member) or isinstance(member, property))
            and not inspect.getdoc(getattr(value, attribute))
        ]
        assert undocumented == []


def test_the_tree_of_errors_is_public() -> None:
    tree = {name for name in errors.__all__ if inspect.isclass(getattr(errors, name))}
    assert tree <= PUBLIC
    assert all(issubclass(getattr(errors, name), errors.EchoStreamError) for name in tree)


def test_prelude_gives_the_same_set() -> None:
    namespace: dict[str, object] = {}
    exec("from echostream.prelude import *", namespace)
    del namespace["__builtins__"]
    assert set(namespace) == PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = echostream.no_such_name
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from echostream import no_such_name")


def test_type_checkers_see_what_runs() -> None:
    """The imports under TYPE_CHECKING name the modules that `__getattr__` loads."""
    tree = ast.parse(Path(echostream.__file__).read_text())
    checked = {
        alias.name: statement.module
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    home = {name: f"echostream.{echostream._HOME.get(name, 'errors')}" for name in PUBLIC}
    assert checked == home


def test_importing_the_package_loads_nothing_else() -> None:
    program = "import sys, echostream; print(*(m for m in sys.modules if 'echostream.' in m))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(echostream.__file__).parents[1],
    )
    assert done.stdout.split() == []
