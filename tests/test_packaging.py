"""What is published works without the source tree: sdist, a wheel made from it, an environment
that has nothing else of EchoStream, the command line in it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

import echostream

PROJECT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

# Run in the new environment: imports every module, then says where each came from.
PROBE = """
import importlib, json, pkgutil, sys
import echostream

missing = {}
for module in pkgutil.walk_packages(echostream.__path__, "echostream."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing[module.name] = error.name
files = {n: m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "echostream"}
print(json.dumps({"version": echostream.__version__, "files": files, "missing": missing}))
"""


class Built(NamedTuple):
    sdist: Path
    wheel: Path


class Environment(NamedTuple):
    folder: Path
    python: Path

    def run(self, *command: str | Path) -> str:
        """Standard output of a command that must succeed, run elsewhere than in the tree."""
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        home = {"ECHOSTREAM_HOME": str(self.folder / "home"), "PYTHONWARNINGS": "error"}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env={**clean, **home},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(PROJECT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel in an environment of its own. The dependencies are those of the tests: a .pth file
    adds their folder, but does not run the .pth files in it, one of which is the editable
    install of the source tree."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    python = folder / "venv" / scripts / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index"),
            *("--no-deps", "--disable-pip-version-check", built.wheel),
        ],
        check=True,
    )
    new = Environment(folder, python)
    site = Path(
        new.run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")[:-1]
    )
    outer = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "dependencies.pth").write_text("\n".join(outer) + "\n")
    return new


def test_the_sdist_carries_the_sources_and_nothing_made_from_them(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    for path in [*PROJECT.glob("ext/*.p[yx]*"), *PROJECT.glob("tests/test_*.py")]:
        assert PurePosixPath(path.relative_to(PROJECT).as_posix()) in names
    assert {
        name for name in names if name.suffix in {".c", ".so", ".pyd", ".html", ".pyc"}
    } == set()
    wanted = ["LICENSE", "README.md", "Makefile", "docs/wire-format.md", "echostream/py.typed"]
    assert {PurePosixPath(name) for name in wanted} <= names


def test_the_wheel_carries_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = {PurePosixPath(name) for name in archive.namelist()}
    tops = {name.parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"echostream"}
    assert {name for name in names if name.suffix in {".pyx", ".c", ".html"}} == set()
    assert PurePosixPath("echostream/py.typed") in names
    compiled = {name.name.split(".")[0] for name in names if name.suffix in {".so", ".pyd"}}
    assert compiled == {path.stem for path in PROJECT.glob("ext/*.pyx")}


def test_every_module_works_from_the_wheel(environment: Environment) -> None:
    found = json.loads(environment.run(environment.python, "-P", "-c", PROBE))
    assert found["version"] == echostream.__version__
    inside = environment.folder / "venv"
    foreign = {n: f for n, f in found["files"].items() if not Path(f).is_relative_to(inside)}
    assert foreign == {}
    # A module may want an optional dependency that is not here, but never one of ours.
    assert {n: m for n, m in found["missing"].items() if m.startswith("echostream")} == {}


@pytest.mark.skipif(importlib.util.find_spec("echostream.cli") is None, reason="no command line")
def test_the_demo_runs_from_the_wheel(environment: Environment) -> None:
    assert environment.run(environment.python.with_name("echostream"), "demo", "--speed", "50")
