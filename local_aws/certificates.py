"""Certificates that ACM issues: pending until the DNS record that proves the domain exists, then signed for real.

moto calls a certificate issued a minute after it was asked for, whatever the name service says, and signs it itself.
Here the account's authority signs, as Amazon's would; renewal is left out.

Sources: https://docs.aws.amazon.com/acm/latest/userguide/dns-validation.html
https://docs.aws.amazon.com/acm/latest/APIReference/API_GetCertificate.html (RequestInProgressException)
https://docs.aws.amazon.com/acm/latest/APIReference/API_CertificateDetail.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_CreateListener.html (UnsupportedCertificate)
https://docs.aws.amazon.com/Route53/latest/DeveloperGuide/dns-routing-traffic-for-subdomains.html
"""

from __future__ import annotations

import hashlib
from typing import Any

import cryptography.x509
from moto.acm.models import CertBundle, acm_backends
from moto.acm.responses import AWSCertificateManagerResponse
from moto.core.exceptions import AWSError
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.elbv2.exceptions import ELBClientError
from moto.elbv2.models import ELBv2Backend
from moto.route53.models import FakeZone, route53_backends

from local_aws.patching import Patcher
from local_aws.tls import Authority

PENDING, ISSUED = "PENDING_VALIDATION", "ISSUED"
UNKNOWN_BEFORE_ISSUE = ("IssuedAt", "NotBefore", "NotAfter", "Serial")


def validation_record(account: str, domain: str) -> tuple[str, str]:
    """Name and value of the CNAME that proves a domain: one per domain and account, a wildcard's is its domain's."""
    base = domain.removeprefix("*.").lower()
    digest = hashlib.sha256(f"{account}/{base}".encode()).hexdigest()
    return f"_{digest[:32]}.{base}.", f"_{digest[32:]}.mhbtsbpdnt.acm-validations.aws."


def answering(account: str, name: str) -> FakeZone | None:
    """The public hosted zone that the DNS asks for a name: the uppermost, or one below that NS records lead to."""
    zones = route53_backends[account]["aws"].zones.values()
    around = [zone for zone in zones if not zone.private_zone and f".{name}".endswith(f".{zone.name}")]
    asked: FakeZone | None = None
    for zone in sorted(around, key=lambda zone: len(zone.name)):
        if asked is None or any(record.type == "NS" and record.name == zone.name for record in asked.rrsets):
            asked = zone
    return asked


def proved(account: str, domain: str) -> bool:
    """Whether the DNS knows the record that proves a domain."""
    name, value = validation_record(account, domain)
    zone = answering(account, name)
    for record in zone.rrsets if zone else []:
        if record.type == "CNAME" and record.name.rstrip(".").lower() == name.rstrip("."):
            return any(entry.rstrip(".").lower() == value.rstrip(".") for entry in record.records)
    return False


def _domains(bundle: CertBundle) -> list[str]:
    """The domain that a certificate was asked for, and its other names."""
    return list(dict.fromkeys([str(bundle.common_name), *sorted(bundle.sans)]))


def connect(authority: Authority, patch: Patcher) -> None:
    """Install all hooks."""
    describe, get_certificate = CertBundle.describe, AWSCertificateManagerResponse.get_certificate
    check = CertBundle.check

    def account_of(bundle: CertBundle) -> str:
        return str(bundle.arn.split(":")[4])

    def check_records(self: CertBundle) -> None:
        if self.type != "AMAZON_ISSUED" or self.status != PENDING:
            check(self)
            return
        domains = _domains(self)
        if all(proved(account_of(self), domain) for domain in domains):
            self.cert = authority.certify(domains, self._key.public_key())
            self._cert = cryptography.x509.load_pem_x509_certificate(self.cert)
            self.chain = authority.pem
            self.issued_at = utcnow()
            self.status = ISSUED

    def describe_truly(self: CertBundle) -> dict[str, Any]:
        answer: dict[str, Any] = describe(self)
        if self.type != "AMAZON_ISSUED":
            return answer
        details = answer["Certificate"]
        options = []
        for domain in _domains(self):
            name, value = validation_record(account_of(self), domain)
            options.append(
                {
                    "DomainName": domain,
                    "ValidationDomain": domain,
                    "ValidationStatus": "SUCCESS" if proved(account_of(self), domain) else PENDING,
                    "ValidationMethod": "DNS",
                    "ResourceRecord": {"Name": name, "Type": "CNAME", "Value": value},
                }
            )
        details["DomainValidationOptions"] = options
        details["Issuer"] = "Amazon"
        if self.status == PENDING:
            for name in UNKNOWN_BEFORE_ISSUE:
                details.pop(name, None)
        else:
            details["IssuedAt"] = self.issued_at.timestamp()
        return answer

    def get_issued(self: AWSCertificateManagerResponse) -> ActionResult:
        arn = self._get_param("CertificateArn")
        if arn and self.acm_backend.get_certificate(arn).status == PENDING:
            raise AWSError(f"Certificate with arn {arn} is in progress.", "RequestInProgressException")
        return get_certificate(self)

    patch.setattr(CertBundle, "check", check_records)
    patch.setattr(CertBundle, "describe", describe_truly)
    patch.setattr(AWSCertificateManagerResponse, "get_certificate", get_issued)
    _issued_only(patch)


def _issued_only(patch: Patcher) -> None:
    """A listener takes no certificate that is not issued."""
    exists = ELBv2Backend._certificate_exists
    create = ELBv2Backend.create_listener

    def refuse_pending(backend: Any, arn: str | None) -> None:
        bundle = acm_backends[backend.account_id][backend.region_name]._certificates.get(arn)
        if bundle is None:
            return
        bundle.check()
        if bundle.status == PENDING:
            raise ELBClientError(
                "UnsupportedCertificate",
                f"The certificate '{arn}' must have a fully-qualified domain name, a supported signature, and a "
                "supported key size.",
            )

    def certificate_exists(self: Any, certificate_arn: str) -> bool:
        refuse_pending(self, certificate_arn)
        return bool(exists(self, certificate_arn))

    def create_listener(
        self: Any,
        load_balancer_arn: str,
        protocol: str,
        port: str,
        ssl_policy: str,
        certificate: str | None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        refuse_pending(self, certificate)
        return create(self, load_balancer_arn, protocol, port, ssl_policy, certificate, *rest, **more)

    patch.setattr(ELBv2Backend, "_certificate_exists", certificate_exists)
    patch.setattr(ELBv2Backend, "create_listener", create_listener)
