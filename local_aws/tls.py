"""The account's own certificate authority, and the server certificates that it signs."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Pem:
    """A certificate and its private key, PEM-encoded."""

    certificate: bytes
    key: bytes


def _name(common_name: str) -> x509.Name:
    # a common name holds at most 64 characters; clients judge by the subject alternative names
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


class Authority:
    """A certificate authority kept in two files; made anew when they are missing, damaged or about to expire."""

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        try:
            self.certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
            now = datetime.datetime.now(datetime.UTC)
            usable = (
                isinstance(key, ec.EllipticCurvePrivateKey)
                and key.public_key() == self.certificate.public_key()
                and self.certificate.not_valid_after_utc > now + RENEW_BEFORE
            )
        except (OSError, ValueError):
            usable = False
        if usable and isinstance(key, ec.EllipticCurvePrivateKey):
            self._key = key
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._make()
        key_file.touch(mode=0o600)
        key_file.chmod(0o600)
        key_file.write_bytes(_key_pem(self._key))
        certificate_file.write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def _make(self) -> x509.Certificate:
        name = _name("Local AWS authority")
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            _builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, names: list[str]) -> Pem:
        """Sign a server certificate for a new key.

        names: DNS names and IP addresses that it is valid for; the first one is also the common name.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return Pem(self.certify(names, key.public_key()), _key_pem(key))

    def certify(self, names: list[str], key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
        """Sign a server certificate for somebody's key; returns it PEM-encoded."""
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(_name(names[0]), self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)
