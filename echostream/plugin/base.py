"""Plugins: an object that adds to a builder what a user could add by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from echostream.builder import ClientBuilder, ServerBuilder

__all__ = ["ENTRY_POINTS", "ClientPlugin", "ServerPlugin"]

ENTRY_POINTS = "echostream.plugins"
"""The group of entry points where a package names its plugins: ``.plugin("name")`` finds them."""


class ServerPlugin(ABC):
    """Extends a server. ``name`` is unique among the plugins of one server.

    ``requires``: plugins, by name, that have to be installed too; they are installed first, in
    whatever order they were given, so that what this one adds comes after (and its interceptor
    inside of) theirs.
    """

    name: str = ""
    requires: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def install(self, builder: ServerBuilder) -> ServerBuilder:
        """Add handlers, hooks, interceptors and values; return the builder."""


class ClientPlugin(ABC):
    """Extends a client. ``name`` and ``requires`` as for :class:`ServerPlugin`."""

    name: str = ""
    requires: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def install(self, builder: ClientBuilder) -> ClientBuilder:
        """Add handlers, hooks, interceptors and values; return the builder."""
