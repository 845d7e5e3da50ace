"""LoadBalancerArns of a target group are those that route to it now; moto only ever adds to them.

DeregisterTargets of a target that is not registered succeeds; moto refuses it.

Sources: https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_TargetGroup.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_DeregisterTargets.html
"""

from __future__ import annotations

from typing import Any

from moto.elbv2.models import FakeTargetGroup, elbv2_backends

from local_aws.patching import Patcher


def apply(patch: Patcher) -> None:
    deregister = FakeTargetGroup.deregister

    def load_balancer_arns(self: FakeTargetGroup) -> list[str]:
        backend = elbv2_backends[self.account_id][self.region_name]
        return [
            balancer.arn
            for balancer in list(backend.load_balancers.values())
            if any(
                self.arn in backend._get_target_group_arns_from(action.data)
                for listener in list(balancer.listeners.values())
                for rule in list(listener.rules.values())
                for action in rule.actions
            )
        ]

    def known_only(self: FakeTargetGroup, targets: list[dict[str, Any]]) -> None:
        deregister(self, [target for target in targets if target["Id"] in self.targets])

    # moto sets it, and appends to it, in many places
    ignored = property(load_balancer_arns, lambda _self, _value: None)
    patch.setattr(FakeTargetGroup, "load_balancer_arns", ignored, raising=False)
    patch.setattr(FakeTargetGroup, "deregister", known_only)
