"""TLS of both ports: one certificate and its key, checked before anything listens.

Knows the two files; nothing about requests. Not covered: certificates of clients, and files that change while
the service runs: it reads them once.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from florence.errors import SettingsError

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, as Mozilla's server side TLS has them; those of 1.3 need no list. uvicorn's default takes only
the ones with SHA-1 of before 1.2, which Python's own clients refuse."""


@dataclass(frozen=True)
class Tls:
    """Files in PEM: a certificate with its chain, and its key without a passphrase."""

    certificate: Path
    key: Path

    def for_bentoml(self) -> dict[str, Any]:
        """The certificate in BentoML's own configuration of the HTTP port."""
        files = {"certfile": str(self.certificate), "keyfile": str(self.key)}
        return {"enabled": True, **files, "ciphers": CIPHERS}

    def for_grpc(self) -> Any:
        """The gRPC server's credentials."""
        return grpc.ssl_server_credentials([(self.key.read_bytes(), self.certificate.read_bytes())])


def tls_of(certificate: Path | None, key: Path | None) -> Tls | None:
    """TLS by the settings FLORENCE_TLS_CERTIFICATE and FLORENCE_TLS_KEY; None where neither is set.

    Raises SettingsError for one without the other, and for files that are not a certificate and its key.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise SettingsError("set both FLORENCE_TLS_CERTIFICATE and FLORENCE_TLS_KEY, or neither")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_refuse)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SettingsError(
            f"FLORENCE_TLS_CERTIFICATE ({certificate}) and FLORENCE_TLS_KEY ({key}) can't be used: {error}"
        ) from None
    return Tls(certificate.absolute(), key.absolute())


def _refuse() -> str:
    raise ValueError("the key has a passphrase; write it without one")
