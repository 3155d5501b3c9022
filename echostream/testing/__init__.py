"""Floor 5: what users of EchoStream test their programs with.

``connected_pair`` is a client and a server in one process without sockets; ``run_virtual`` runs a
test on virtual time; ``Impairment`` describes a bad network, for the pair and for ``UdpRelay``,
which puts one between real sockets.
"""

from echostream.testing.network import Impairment
from echostream.testing.pair import connected_pair
from echostream.testing.relay import UdpRelay
from echostream.testing.virtual_time import DeadlockError, VirtualTimeLoop, run_virtual

__all__ = [
    "DeadlockError",
    "Impairment",
    "UdpRelay",
    "VirtualTimeLoop",
    "connected_pair",
    "run_virtual",
]
