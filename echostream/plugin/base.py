"""Plugins: an object that adds to a builder what a user could add by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echostream.builder import ClientBuilder, ServerBuilder

__all__ = ["ClientPlugin", "ServerPlugin"]


class ServerPlugin(ABC):
    """Extends a server. ``name`` is unique among the plugins of one server."""

    name: str = ""

    @abstractmethod
    def install(self, builder: ServerBuilder) -> ServerBuilder:
        """Add handlers, hooks and values; return the builder."""


class ClientPlugin(ABC):
    """Extends a client. ``name`` is unique among the plugins of one client."""

    name: str = ""

    @abstractmethod
    def install(self, builder: ClientBuilder) -> ClientBuilder:
        """Add handlers, hooks and values; return the builder."""
