"""What every AWS account has from the start: Canonical's images, the public parameters, an administrator."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from moto.core.parse import default_timestamp_parser
from moto.core.utils import utcnow
from moto.ec2.models.amis import Ami, AmiBackend
from moto.iam.models import iam_backends
from moto.route53.models import route53_backends
from moto.ssm.models import Parameter, ParameterDict

from local_aws.patching import Patcher
from local_aws.state import ACCOUNT_ID

CANONICAL = "099720109477"
ADMINISTRATOR = "administrator"
ADMINISTRATOR_POLICY = "arn:aws:iam::aws:policy/AdministratorAccess"
PARAMETERS = "/aws/service/canonical/ubuntu/server"

# release, code name, storage, dates of the images; several dates, so that "the newest" has a meaning
RELEASES = (
    ("22.04", "jammy", "hvm-ssd", "ebs-gp2", ("20250712", "20260218", "20260829")),
    ("24.04", "noble", "hvm-ssd-gp3", "ebs-gp3", ("20250610", "20260314", "20260905")),
)
ARCHITECTURES = {"amd64": "x86_64", "arm64": "arm64"}


@dataclass(frozen=True)
class UbuntuImage:
    """One of Canonical's public images, as DescribeImages shows it."""

    release: str
    code_name: str
    storage: str
    parameter_storage: str
    date: str
    architecture: str

    @property
    def name(self) -> str:
        system = f"ubuntu-{self.code_name}-{self.release}-{self.architecture}-server-{self.date}"
        return f"ubuntu/images/{self.storage}/{system}"

    def image_id(self, region: str) -> str:
        return "ami-" + hashlib.sha256(f"{region}/{self.name}".encode()).hexdigest()[:17]

    @property
    def parameter(self) -> str:
        """Source: https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/"""
        return f"{PARAMETERS}/{self.release}/stable/current/{self.architecture}/hvm/{self.parameter_storage}/ami-id"


def ubuntu_images() -> list[UbuntuImage]:
    """Every image, oldest first."""
    return [
        UbuntuImage(release, code_name, storage, parameter_storage, date, architecture)
        for release, code_name, storage, parameter_storage, dates in RELEASES
        for date in dates
        for architecture in ARCHITECTURES
    ]


def furnish(patch: Patcher) -> None:
    """Add the public images and parameters to every region, also after a reset."""
    load_images, load_parameters = AmiBackend._load_amis, ParameterDict._check_loading_status

    def _load_amis(self: Any) -> None:
        load_images(self)
        for image in ubuntu_images():
            day = f"{image.date[:4]}-{image.date[4:6]}-{image.date[6:]}T06:12:45.000Z"
            self.amis[image.image_id(self.region_name)] = Ami(
                self,
                image.image_id(self.region_name),
                name=image.name,
                description=f"Canonical, Ubuntu, {image.release}, {image.architecture} {image.code_name} image",
                owner_id=CANONICAL,
                owner_alias="amazon",
                public=True,
                virtualization_type="hvm",
                architecture=ARCHITECTURES[image.architecture],
                creation_date=default_timestamp_parser(day),
                image_location=f"amazon/{image.name}",
                hypervisor="xen",
                root_device_type="ebs",
                root_device_name="/dev/sda1",
                region_name=f"{self.region_name}a",
                boot_mode="uefi" if image.architecture == "arm64" else "uefi-preferred",
            )

    def _check_loading_status(self: ParameterDict, key: str) -> None:
        load_parameters(self, key)
        if not str(key or "").startswith("/aws/service/canonical/") or getattr(self, "canonical_loaded", False):
            return
        self.canonical_loaded = True
        for image in ubuntu_images():  # oldest first: the newest becomes the current version
            # Parameter keeps its name; defaultdict's own access, since this class's would come back here
            versions = dict.setdefault(self, image.parameter, [])
            versions.append(
                Parameter(
                    account_id=self.account_id,
                    name=image.parameter,
                    value=image.image_id(self.region_name),
                    parameter_type="String",
                    description=None,
                    allowed_pattern=None,
                    keyid=None,
                    last_modified_date=utcnow(),
                    version=len(versions) + 1,
                    data_type="aws:ec2:image",
                )
            )

    patch.setattr(AmiBackend, "_load_amis", _load_amis)
    patch.setattr(ParameterDict, "_check_loading_status", _check_loading_status)


def open_account(key_id: str, key_secret: str, region: str, zones: list[str]) -> None:
    """Create the administrator, with a given access key, and the public hosted zones."""
    iam = iam_backends[ACCOUNT_ID]["aws"]
    iam.create_user(region, ADMINISTRATOR)
    iam.attach_user_policy(ADMINISTRATOR_POLICY, ADMINISTRATOR)
    made = iam.create_access_key(ADMINISTRATOR)
    iam.access_keys.pop(made.access_key_id, None)
    made.access_key_id, made.secret_access_key = key_id, key_secret
    iam.access_keys[key_id] = made
    for zone in zones:
        create_zone(zone)


def create_zone(name: str) -> str:
    """Create a public hosted zone unless there is one of this name; returns its id."""
    backend = route53_backends[ACCOUNT_ID]["aws"]
    wanted = name.rstrip(".") + "."
    for zone in backend.zones.values():
        if zone.name == wanted and not zone.private_zone:
            return str(zone.id)
    made = backend.create_hosted_zone(
        name=wanted, private_zone=False, caller_reference=f"local-aws-{name}", vpcid=None, vpcregion=None, comment=None
    )
    return str(made.id)
