"""Certificates, keys and options in the form that aioquic wants them."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Sequence

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from echostream.errors import ConfigurationError
from echostream.transport.quic.logs import KeyLog, QlogDirectory
from echostream.transport.quic.options import CONNECTION_ID_LENGTH, QuicOptions

__all__ = ["load_credentials", "quic_configuration", "trust_in"]

LARGEST_DATAGRAM_FRAME = 65535
"""RFC 9221, section 3: announced so that the packet is the only limit."""


def quic_configuration(
    options: QuicOptions, *, is_client: bool, alpn: Sequence[str]
) -> QuicConfiguration:
    """aioquic's configuration for ``options``. QUIC version 1 only: keys for each further
    version cost every handshake."""
    if isinstance(alpn, str) or not alpn or not all(0 < len(a.encode()) < 256 for a in alpn):
        raise ConfigurationError(f"alpn must be names of 1 to 255 bytes, not {alpn!r}")
    keylog_file = options.keylog_file
    if keylog_file is None and not sys.flags.ignore_environment:
        keylog_file = os.environ.get("SSLKEYLOGFILE") or None  # as Python's ssl does
    return QuicConfiguration(
        alpn_protocols=list(alpn),
        cipher_suites=[CipherSuite[name] for name in options.ciphers],
        congestion_control_algorithm=options.congestion_control,
        connection_id_length=CONNECTION_ID_LENGTH,
        idle_timeout=options.idle_timeout,
        initial_rtt=options.initial_rtt,
        is_client=is_client,
        max_data=options.connection_window,
        max_datagram_frame_size=LARGEST_DATAGRAM_FRAME,
        max_datagram_size=options.max_datagram_size,
        max_stream_data=options.stream_window,
        quic_logger=None
        if options.qlog_dir is None
        else QlogDirectory(os.fspath(options.qlog_dir)),
        secrets_log_file=None if keylog_file is None else KeyLog(keylog_file),  # type: ignore[arg-type]
        supported_versions=[QuicProtocolVersion.VERSION_1],
    )


def load_credentials(
    configuration: QuicConfiguration, certificate_chain_pem: bytes, private_key_pem: bytes
) -> None:
    """Parse and check a chain and its key. aioquic's own loader loses certificates of files
    with CRLF and fails on a trailing blank line."""
    try:
        chain = x509.load_pem_x509_certificates(certificate_chain_pem)
    except ValueError as error:
        raise ConfigurationError(f"the certificate chain cannot be read: {error}") from error
    try:
        key = load_pem_private_key(private_key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"the private key cannot be read: {error}") from error
    if not isinstance(key, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)) and not (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1))
    ):
        raise ConfigurationError("the private key must be P-256, P-384, Ed25519 or RSA")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
        raise ConfigurationError("the private key does not belong to the certificate")
    configuration.certificate = chain[0]
    configuration.certificate_chain = chain[1:]
    configuration.private_key = key


def trust_in(configuration: QuicConfiguration, ca_data: bytes | None, verify: bool) -> None:
    """Whom a client believes: the given CAs (PEM), else those of the system."""
    if not verify:
        configuration.verify_mode = ssl.CERT_NONE
        return
    if ca_data is None:
        system = ssl.get_default_verify_paths()
        # Without either, aioquic falls back to certifi's list.
        configuration.load_verify_locations(cafile=system.cafile, capath=system.capath)
        return
    try:
        authorities = x509.load_pem_x509_certificates(ca_data)
    except ValueError as error:
        raise ConfigurationError(f"the CA certificates cannot be read: {error}") from error
    configuration.cadata = b"".join(a.public_bytes(Encoding.PEM) for a in authorities)
