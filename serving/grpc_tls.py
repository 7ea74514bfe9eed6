"""TLS of gRPC by the certificate files of the moment: credentials of ports, which follow the files, and of channels."""

from __future__ import annotations

from typing import Any

import grpc

from serving.access.certificates import Pem, PemFiles, watch_certificates


def port_credentials(files: PemFiles) -> grpc.ServerCredentials:
    """TLS for a port; with authorities only for clients that show a certificate. ConfigError when the files are bad."""
    watched = watch_certificates(files)
    served = watched.current()

    def changed() -> Any:
        """Called by gRPC before each handshake; None keeps what there is."""
        nonlocal served
        if (pem := watched.current()) is served:
            return None
        served = pem
        return _configuration(pem)

    # gRPC for Python either requires a certificate of clients or does not ask for one.
    return grpc.dynamic_ssl_server_credentials(_configuration(served), changed, files.ca is not None)


def _configuration(pem: Pem) -> Any:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.ca)


def channel_credentials(pem: Pem) -> grpc.ChannelCredentials:
    """TLS for a channel, which keeps them: make another channel when the files change."""
    return grpc.ssl_channel_credentials(root_certificates=pem.ca, private_key=pem.key, certificate_chain=pem.chain)
