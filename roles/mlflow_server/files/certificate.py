"""Sign the server's certificate in DIRECTORY anew, by the authority beside it; all but its number and dates stays."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

LIFETIME = datetime.timedelta(days=825)


def main(directory: Path) -> None:
    path = directory / "server.pem"
    former = x509.load_pem_x509_certificate(path.read_bytes())
    authority: Any = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017  (not in Ubuntu 22.04's Python)
    certificate = x509.CertificateBuilder(
        issuer_name=former.issuer,
        subject_name=former.subject,
        public_key=former.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now,
        not_valid_after=now + LIFETIME,
        extensions=list(former.extensions),
    ).sign(authority, hashes.SHA256())
    fresh = path.with_suffix(".new")
    fresh.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    fresh.replace(path)


main(Path(sys.argv[1]))
