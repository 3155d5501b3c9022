"""Floor 5: what users of EchoStream test their programs with.

``connected_pair`` is a client and a server in one process without sockets, ``quic_pair`` the same
over real QUIC, ``QuicNetwork`` that with many clients; ``run_virtual`` runs a test on virtual time;
``Impairment`` describes a bad network, for all of them and for ``UdpRelay``, which puts one between
real sockets.
"""

from echostream.testing.network import Impairment
from echostream.testing.pair import connected_pair
from echostream.testing.quic_network import QuicNetwork, quic_pair
from echostream.testing.relay import UdpRelay
from echostream.testing.virtual_time import DeadlockError, VirtualTimeLoop, run_virtual

__all__ = [
    "DeadlockError",
    "Impairment",
    "QuicNetwork",
    "UdpRelay",
    "VirtualTimeLoop",
    "connected_pair",
    "quic_pair",
    "run_virtual",
]
