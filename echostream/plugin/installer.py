"""Installs plugins in the order of what they require, and finds them by name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from echostream.errors import ConfigurationError
from echostream.plugin.base import ENTRY_POINTS

__all__ = ["PluginInstaller", "find_plugin"]


def find_plugin(name: str, options: dict[str, Any]) -> Any:
    """The plugin that an installed package offers under ``name``, made with ``options``. Raises
    ``ConfigurationError``."""
    found = entry_points(group=ENTRY_POINTS)
    wanted = [each for each in found if each.name == name]
    if len({each.value for each in wanted}) != 1:
        known = ", ".join(sorted({each.name for each in found})) or "none"
        fault = "several packages offer a plugin" if wanted else "no package offers a plugin"
        raise ConfigurationError(f"{fault} {name!r} (known: {known})")
    try:
        return wanted[0].load()(**options)
    except (ImportError, AttributeError, TypeError) as exc:
        raise ConfigurationError(f"plugin {name!r} cannot be made: {exc}") from exc


class PluginInstaller:
    """The plugins of one builder: those that wait for others, and the names of those installed."""

    def __init__(self, builder: Any, kind: type) -> None:
        self._builder = builder
        self._kind = kind
        self._waiting: dict[str, Any] = {}
        self.installed: list[str] = []

    def add(self, plugin: Any) -> None:
        """Install a plugin now, or once all that it requires is there."""
        if not isinstance(plugin, self._kind):
            raise ConfigurationError(
                f".plugin() wants a {self._kind.__name__}, got {type(plugin).__name__}"
            )
        name = plugin.name or type(plugin).__name__  # type: ignore[attr-defined]
        if name in self.installed or name in self._waiting:
            raise ConfigurationError(f"a plugin named {name!r} is installed already")
        self._waiting[name] = plugin
        while ready := [n for n, p in self._waiting.items() if not self._missing(p)]:
            for each in ready:
                self._install(each, self._waiting.pop(each))

    def finish(self) -> tuple[str, ...]:
        """The names of all plugins. Raises ``ConfigurationError`` where one lacks another."""
        for name, plugin in self._waiting.items():
            missing = ", ".join(map(repr, self._missing(plugin)))
            raise ConfigurationError(f"plugin {name!r} requires {missing}: install it too")
        return tuple(self.installed)

    def _missing(self, plugin: Any) -> list[str]:
        return [name for name in plugin.requires if name not in self.installed]

    def _install(self, name: str, plugin: Any) -> None:
        self.installed.append(name)
        try:
            result = plugin.install(self._builder)
        except ConfigurationError as exc:
            raise ConfigurationError(f"plugin {name!r}: {exc}") from exc
        if result is not self._builder:
            raise ConfigurationError(f"plugin {name!r}: install() must return the builder it got")
