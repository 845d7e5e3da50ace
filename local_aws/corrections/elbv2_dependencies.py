"""A load balancer has network interfaces in its subnets, with its security groups: neither can be deleted before it.

moto deletes both. Not made here are the interfaces themselves, which AWS keeps for a while after the load balancer.

Sources: https://docs.aws.amazon.com/vpc/latest/userguide/delete-vpc.html
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteSecurityGroup.html (DependencyViolation)
"""

from __future__ import annotations

from typing import Any

from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models import EC2Backend
from moto.ec2.models.subnets import Subnet
from moto.elbv2.models import elbv2_backends

from local_aws.patching import Patcher


def apply(patch: Patcher) -> None:
    delete_subnet, delete_group = EC2Backend.delete_subnet, EC2Backend._delete_security_group

    def balancers(backend: Any) -> list[Any]:
        return list(elbv2_backends[backend.account_id][backend.region_name].load_balancers.values())

    def delete_unused_subnet(self: Any, subnet_id: str) -> Subnet:
        if any(subnet.id == subnet_id for balancer in balancers(self) for subnet in balancer.subnets):
            raise DependencyViolationError(f"The subnet '{subnet_id}' has dependencies and cannot be deleted.")
        return delete_subnet(self, subnet_id)

    def delete_unused_group(self: Any, vpc_id: str, group_id: str) -> Any:
        if any(group_id in (balancer.security_groups or []) for balancer in balancers(self)):
            raise DependencyViolationError(f"resource {group_id} has a dependent object")
        return delete_group(self, vpc_id, group_id)

    patch.setattr(EC2Backend, "delete_subnet", delete_unused_subnet)
    patch.setattr(EC2Backend, "_delete_security_group", delete_unused_group)
