"""Ties moto's Elastic Load Balancing to the containers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from moto.acm.models import AWSCertificateManagerBackend
from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.elbv2.exceptions import ELBClientError, TargetGroupNotFoundError
from moto.elbv2.models import ELBv2Backend, FakeHealthStatus, FakeLoadBalancer, FakeTargetGroup
from moto.elbv2.responses import ELBV2Response

from local_aws.balancers import Balancers
from local_aws.networks import CidrOverlapError, Networks
from local_aws.patching import Patcher
from local_aws.wiring import SETTLE_SECONDS

FOLLOWED = (
    "create_listener",
    "modify_listener",
    "delete_listener",
    "add_listener_certificates",
    "remove_listener_certificates",
    "create_rule",
    "modify_rule",
    "delete_rule",
    "set_rule_priorities",
    "modify_load_balancer_attributes",
    "modify_target_group",
    "modify_target_group_attributes",
)


def connect(balancers: Balancers, networks: Networks, patch: Patcher) -> None:
    """Install all hooks. Call once, after the corrections."""
    _load_balancers(balancers, networks, patch)
    _targets(balancers, patch)

    def following(original: Callable[..., Any]) -> Callable[..., Any]:
        """An operation of moto; then the load balancers look at what has changed."""

        @functools.wraps(original)
        def operation(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            balancers.refresh()
            return result

        return operation

    for name in FOLLOWED:
        patch.setattr(ELBv2Backend, name, following(getattr(ELBv2Backend, name)))
    import_certificate = AWSCertificateManagerBackend.import_certificate
    patch.setattr(AWSCertificateManagerBackend, "import_certificate", following(import_certificate))


def _load_balancers(balancers: Balancers, networks: Networks, patch: Patcher) -> None:
    create, delete = ELBv2Backend.create_load_balancer, ELBv2Backend.delete_load_balancer
    describe, activate = ELBV2Response.describe_load_balancers, FakeLoadBalancer.activate

    def create_load_balancer(self: Any, *args: Any, **kwargs: Any) -> FakeLoadBalancer:
        balancer: FakeLoadBalancer = create(self, *args, **kwargs)
        if balancer.type != "application":
            return balancer  # no other kind really runs
        vpc = ec2_backends[self.account_id][self.region_name].get_vpc(balancer.vpc_id)
        try:
            network = networks.for_vpc(vpc.id, vpc.cidr_block)
            balancers.create(balancer, self.account_id, self.region_name, network)
        except (CidrOverlapError, LookupError) as error:
            self.load_balancers.pop(balancer.arn)
            raise ELBClientError("InvalidSubnet", str(error)) from error
        return balancer

    def delete_load_balancer(self: Any, arn: str) -> None:
        delete(self, arn)
        balancers.delete(arn)

    def describe_load_balancers(self: ELBV2Response) -> ActionResult:
        balancers.settle(SETTLE_SECONDS)
        return describe(self)

    def activate_others(self: FakeLoadBalancer) -> None:
        """An application load balancer is active when it runs; the other kinds when they are looked at."""
        if self.type != "application":
            activate(self)

    patch.setattr(ELBv2Backend, "create_load_balancer", create_load_balancer)
    patch.setattr(ELBv2Backend, "delete_load_balancer", delete_load_balancer)
    patch.setattr(ELBV2Response, "describe_load_balancers", describe_load_balancers)
    patch.setattr(FakeLoadBalancer, "activate", activate_others)


def _targets(balancers: Balancers, patch: Patcher) -> None:
    register, deregister = FakeTargetGroup.register, FakeTargetGroup.deregister
    create, describe = ELBv2Backend.create_target_group, ELBv2Backend.describe_target_health

    def really(group: FakeTargetGroup) -> bool:
        return group.protocol in ("HTTP", "HTTPS") and group.target_type in ("instance", "ip")

    def create_target_group(self: Any, *args: Any, **kwargs: Any) -> FakeTargetGroup:
        balancers.prepare()
        return create(self, *args, **kwargs)

    def register_targets(self: FakeTargetGroup, targets: list[dict[str, Any]]) -> None:
        with balancers.lock:
            register(self, targets)
            if really(self):
                balancers.registered(self, targets)

    def deregister_targets(self: FakeTargetGroup, targets: list[dict[str, Any]]) -> None:
        with balancers.lock:
            leaving = [self.targets[target["Id"]] for target in targets if target["Id"] in self.targets]
            deregister(self, targets)
            if really(self):
                balancers.deregister(self, leaving)

    def deregister_terminated_instances(self: FakeTargetGroup, instance_ids: list[str]) -> None:
        self.deregister([{"Id": instance_id} for instance_id in instance_ids])

    def describe_target_health(self: Any, target_group_arn: str, targets: Any) -> list[FakeHealthStatus]:
        group = self.target_groups.get(target_group_arn)
        if group is None:
            raise TargetGroupNotFoundError()
        if not really(group):
            return list(describe(self, target_group_arn, targets))
        return balancers.health(group, targets or [])

    patch.setattr(ELBv2Backend, "create_target_group", create_target_group)
    patch.setattr(FakeTargetGroup, "register", register_targets)
    patch.setattr(FakeTargetGroup, "deregister", deregister_targets)
    patch.setattr(FakeTargetGroup, "deregister_terminated_instances", deregister_terminated_instances)
    patch.setattr(ELBv2Backend, "describe_target_health", describe_target_health)
