"""``pytest bench`` times what ``bench_*.py`` defines, with pytest-benchmark's ``benchmark``.

``--smoke`` runs every benchmark once and times nothing, so that CI notices a broken one.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Seen when ``bench`` or a file in it is named on the command line."""
    parser.addoption("--smoke", action="store_true", help="run every benchmark once, untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Before pytest-benchmark's own, which runs last."""
    if config.getoption("--smoke") and config.pluginmanager.hasplugin("benchmark"):
        config.option.benchmark_disable = True


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Take ``bench_*.py`` of this directory; a file that is named is taken anyway."""
    if not file_path.match("bench_*.py") or parent.session.isinitpath(file_path):
        return None
    module: pytest.Module = pytest.Module.from_parent(parent, path=file_path)
    return module
