"""Scaling policies of ECS services: their alarms watch the policy's own metric and target, and go with the policy.

moto's alarms watch CPU against 6 percent whatever the policy says, and stay when a policy is put again. Deregistering a
scalable target deletes its policies, which moto keeps.

Sources: https://docs.aws.amazon.com/autoscaling/application/APIReference/API_DeregisterScalableTarget.html
https://docs.aws.amazon.com/autoscaling/application/userguide/application-auto-scaling-target-tracking.html
"""

from __future__ import annotations

from typing import Any

from moto.applicationautoscaling.models import ApplicationAutoscalingBackend, FakeApplicationAutoscalingPolicy
from moto.cloudwatch.models import cloudwatch_backends

from local_aws.patching import Patcher
from local_aws.scaling import SCALE_IN_FROM, metric_of


def apply(patch: Patcher) -> None:
    generate = FakeApplicationAutoscalingPolicy._generate_ecs_alarms
    put, deregister = (
        ApplicationAutoscalingBackend.put_scaling_policy,
        ApplicationAutoscalingBackend.deregister_scalable_target,
    )

    def _generate_ecs_alarms(self: Any) -> list[Any]:
        configuration = self.target_tracking_scaling_policy_configuration or {}
        metric = metric_of(self.resource_id, configuration.get("PredefinedMetricSpecification") or {})
        if metric is None:
            return list(generate(self))
        target = float(configuration["TargetValue"])
        return [
            cloudwatch_backends[self.account_id][self.region_name].put_metric_alarm(
                name=f"TargetTracking-{self.resource_id}-{kind}-{self._guid}",
                namespace=metric.namespace,
                metric_name=metric.name,
                metric_data_queries=[],
                comparison_operator=comparison,
                evaluation_periods=periods,
                period=60,
                threshold=threshold,
                statistic=metric.statistic,
                description=f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {self.policy_arn}.",
                dimensions=[{"Name": name, "Value": value} for name, value in metric.dimensions.items()],
                alarm_actions=[self.policy_arn],
            )
            for kind, comparison, periods, threshold in (
                ("AlarmHigh", "GreaterThanThreshold", 3, target),
                ("AlarmLow", "LessThanThreshold", 15, target * SCALE_IN_FROM),
            )
        ]

    def put_scaling_policy(
        self: Any,
        policy_name: str,
        service_namespace: str,
        resource_id: str,
        scalable_dimension: str,
        policy_body: dict[str, Any],
        policy_type: str | None,
    ) -> FakeApplicationAutoscalingPolicy:
        place = (service_namespace, resource_id, scalable_dimension)
        before = self.policies.get(FakeApplicationAutoscalingPolicy.formulate_key(*place, policy_name))
        made: FakeApplicationAutoscalingPolicy = put(self, policy_name, *place, policy_body, policy_type)
        if before is not None:
            before.delete_alarms(self.account_id, self.region_name)
            made.policy_arn = before.policy_arn
            for alarm in made.alarms:
                alarm.alarm_actions = [made.policy_arn]
        return made

    def deregister_scalable_target(self: Any, namespace: str, r_id: str, dimension: str) -> None:
        deregister(self, namespace, r_id, dimension)
        for policy in list(self.policies.values()):
            if policy.resource_id == r_id and policy.scalable_dimension == dimension:
                self.delete_scaling_policy(policy.policy_name, namespace, r_id, dimension)

    patch.setattr(FakeApplicationAutoscalingPolicy, "_generate_ecs_alarms", _generate_ecs_alarms)
    patch.setattr(ApplicationAutoscalingBackend, "put_scaling_policy", put_scaling_policy)
    patch.setattr(ApplicationAutoscalingBackend, "deregister_scalable_target", deregister_scalable_target)
