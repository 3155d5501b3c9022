"""What a network may do to datagrams, for virtual networks and the relay alike."""

from echostream.transport.impairment import Impairer, Impairment, PathStatistics
from echostream.transport.memory import MemoryEngine, MemoryLink, memory_pair
from echostream.transport.memory_network import MemoryEndpoint, MemoryNetwork

__all__ = [
    "Impairer",
    "Impairment",
    "MemoryEndpoint",
    "MemoryEngine",
    "MemoryLink",
    "MemoryNetwork",
    "PathStatistics",
    "memory_pair",
]
