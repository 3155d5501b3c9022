"""QUIC over aioquic, hardened. The only place that imports aioquic."""

from echostream.transport.quic.acceptor import QuicAcceptor
from echostream.transport.quic.engine import QuicEngine, client_engine
from echostream.transport.quic.options import CONNECTION_ID_LENGTH, QuicOptions
from echostream.transport.quic.tickets import TicketStore

__all__ = [
    "CONNECTION_ID_LENGTH",
    "QuicAcceptor",
    "QuicEngine",
    "QuicOptions",
    "TicketStore",
    "client_engine",
]
