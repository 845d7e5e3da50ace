"""GetCertificate returns an imported certificate's chain as it was given; moto adds Amazon's root to it, so that a
client that compares finds another chain at every run. Without a chain AWS returns the certificate itself for it.

A certificate that is imported again keeps its tags, and is in use by the load balancers whose listeners present it:
DeleteCertificate is refused meanwhile. moto forgets the tags, calls listeners what uses a certificate, and deletes.

Sources: https://docs.aws.amazon.com/acm/latest/APIReference/API_ImportCertificate.html
https://docs.aws.amazon.com/acm/latest/APIReference/API_CertificateDetail.html (InUseBy)
https://docs.aws.amazon.com/acm/latest/APIReference/API_DeleteCertificate.html
https://github.com/ansible-collections/community.aws/blob/main/tests/integration/targets/acm_certificate/tasks/full_acm_test.yml
(run against AWS: an import is not changed the second time, with a chain and without one)
"""

from __future__ import annotations

from typing import Any

from moto.acm.models import AWSCertificateManagerBackend, CertBundle
from moto.core.exceptions import AWSError
from moto.elbv2.models import elbv2_backends

from local_aws.patching import Patcher


def users(arn: str) -> list[str]:
    """The load balancers that present a certificate."""
    _arn, _partition, _service, region, account, _id = arn.split(":", 5)
    return [
        balancer.arn
        for balancer in list(elbv2_backends[account][region].load_balancers.values())
        if any(arn in listener.certificates for listener in list(balancer.listeners.values()))
    ]


def apply(patch: Patcher) -> None:
    initialise, delete = CertBundle.__init__, AWSCertificateManagerBackend.delete_certificate
    import_certificate = AWSCertificateManagerBackend.import_certificate

    def with_given_chain(self: CertBundle, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if self.type == "IMPORTED":
            self.chain = kwargs.get("chain") or self.cert

    def import_with_tags(
        self: Any, certificate: bytes, private_key: bytes, chain: bytes | None, arn: str | None, tags: Any
    ) -> str:
        before = self._certificates.get(arn)
        made: str = import_certificate(self, certificate, private_key, chain, arn, tags)
        if before is not None:
            self._certificates[made].tags.update(before.tags)
        return made

    def delete_certificate(self: Any, arn: str) -> None:
        if arn in self._certificates and users(arn):
            raise AWSError(f"Certificate {arn} in account {self.account_id} is in use.", "ResourceInUseException")
        delete(self, arn)

    in_use_by = property(lambda self: users(self.arn), lambda _self, _value: None)
    patch.setattr(CertBundle, "__init__", with_given_chain)
    patch.setattr(CertBundle, "in_use_by", in_use_by, raising=False)
    patch.setattr(AWSCertificateManagerBackend, "import_certificate", import_with_tags)
    patch.setattr(AWSCertificateManagerBackend, "delete_certificate", delete_certificate)
