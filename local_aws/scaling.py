"""Target tracking of ECS services: the desired count follows a metric of CloudWatch.

Nothing measures the tasks: the metric is what PutMetricData brings. The newest value of the last minutes decides, where
AWS waits for several of them; one from before the last scaling says nothing of the tasks there are now. Cooldowns pass
SPEED times as fast as they say. Sources:
https://docs.aws.amazon.com/autoscaling/application/userguide/target-tracking-scaling-policy-overview.html
https://docs.aws.amazon.com/autoscaling/application/APIReference/API_PredefinedMetricSpecification.html
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from moto.applicationautoscaling.models import applicationautoscaling_backends
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.utils import utcnow
from moto.ecs.models import ecs_backends

from local_aws.services import Services
from local_aws.state import ACCOUNT_ID, Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
FRESH = timedelta(minutes=3)
DEFAULT_COOLDOWN = 300
SCALE_IN_FROM = 0.9  # of the target; between that and the target nothing happens
SPEED_VARIABLE = "LOCAL_AWS_SCALING_SPEED"  # of `start`'s environment; 1 is AWS's own
DEFAULT_SPEED = 60.0
DIMENSION = "ecs:service:DesiredCount"
NEVER = utcnow() - timedelta(days=3650)


@dataclass(frozen=True)
class Metric:
    """A metric that a policy follows."""

    namespace: str
    name: str
    dimensions: dict[str, str]
    statistic: str


def metric_of(resource_id: str, specification: dict[str, Any]) -> Metric | None:
    """The metric behind a predefined type; None for a type that is not an ECS service's."""
    _, cluster, service = resource_id.split("/")
    own = {"ClusterName": cluster, "ServiceName": service}
    kind = specification.get("PredefinedMetricType")
    if kind == "ECSServiceAverageCPUUtilization":
        return Metric("AWS/ECS", "CPUUtilization", own, "Average")
    if kind == "ECSServiceAverageMemoryUtilization":
        return Metric("AWS/ECS", "MemoryUtilization", own, "Average")
    if kind == "ALBRequestCountPerTarget":
        group = str(specification.get("ResourceLabel", "")).partition("targetgroup/")[2]
        return Metric("AWS/ApplicationELB", "RequestCountPerTarget", {"TargetGroup": f"targetgroup/{group}"}, "Sum")
    return None


def wanted_count(current: int, value: float, target: float) -> int:
    """How many tasks bring a metric that falls with their number to its target; the same within the tolerance."""
    if target * SCALE_IN_FROM <= value <= target:
        return current
    return math.ceil(current * value / target)


class Scaling:
    """One thread that looks at every policy of a service every few seconds."""

    def __init__(self, services: Services, settings: Settings) -> None:
        self._services, self._settings = services, settings
        self._speed = float(os.environ.get(SPEED_VARIABLE) or DEFAULT_SPEED)
        self._last: dict[str, tuple[datetime, bool]] = {}  # when a resource was scaled, and whether out
        threading.Thread(target=self._work, name="scaling", daemon=True).start()

    def forget_all(self) -> None:
        self._last.clear()

    def _work(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                targets = applicationautoscaling_backends[ACCOUNT_ID][self._settings.region].targets
                for target in list(targets.get(DIMENSION, {}).values()):
                    self._look_at(target)
            except Exception:  # one bad policy must not end the loop
                log.exception("scaling")

    def _look_at(self, target: Any) -> None:
        _, cluster, name = target.resource_id.split("/")
        service = ecs_backends[ACCOUNT_ID][self._settings.region].services.get(f"{cluster}:{name}")
        if service is None or service.status != "ACTIVE":
            return
        backend = applicationautoscaling_backends[ACCOUNT_ID][self._settings.region]
        policies = [
            policy.target_tracking_scaling_policy_configuration
            for policy in list(backend.policies.values())
            if policy.resource_id == target.resource_id and policy.target_tracking_scaling_policy_configuration
        ]
        current = int(service.desired_count)
        opinions = [(policy, self._opinion(target.resource_id, policy, current)) for policy in policies]
        known = [(policy, count) for policy, count in opinions if count is not None]
        if not known:
            return
        # out as soon as one policy says so, in only when all of them do: the largest wins
        policy, count = max(known, key=lambda pair: pair[1])
        count = min(max(count, int(target.min_capacity)), int(target.max_capacity))
        suspended = target.suspended_state or {}
        if count == current or (len(known) < len(policies) and count < current):
            return
        out = count > current
        if not out and any(other.get("DisableScaleIn") for other, _count in known):
            return
        if suspended.get("DynamicScalingOutSuspended" if out else "DynamicScalingInSuspended"):
            return
        if self._cooling(target.resource_id, policy, out):
            return
        log.info("%s: from %d to %d tasks", target.resource_id, current, count)
        self._services.scale(service, count)
        self._last[target.resource_id] = (utcnow(), out)

    def _opinion(self, resource_id: str, policy: dict[str, Any], current: int) -> int | None:
        metric = metric_of(resource_id, policy.get("PredefinedMetricSpecification") or {})
        scaled, _out = self._last.get(resource_id, (NEVER, False))
        value = self._newest(metric, max(scaled, utcnow() - FRESH)) if metric else None
        return None if value is None else wanted_count(current, value, float(policy["TargetValue"]))

    def _newest(self, metric: Metric, since: datetime) -> float | None:
        found = [
            datum
            for datum in list(cloudwatch_backends[ACCOUNT_ID][self._settings.region].metric_data)
            if datum.namespace == metric.namespace
            and datum.name == metric.name
            and metric.dimensions.items() <= {d.name: d.value for d in datum.dimensions}.items()
            and datum.timestamp.replace(tzinfo=None) > since.replace(tzinfo=None)
        ]
        return float(max(found, key=lambda datum: datum.timestamp).value) if found else None

    def _cooling(self, resource_id: str, policy: dict[str, Any], out: bool) -> bool:
        """Whether a scaling in the same direction, or out before in, was too short ago.

        Source: https://docs.aws.amazon.com/autoscaling/application/userguide/target-tracking-scaling-policy-overview.html
        (cooldown periods): a scale-out may interrupt the cooldown of a scale-in, never the other way round.
        """
        moment, was_out = self._last.get(resource_id, (NEVER, out))
        if out and not was_out:
            return False
        given = policy.get("ScaleOutCooldown" if out else "ScaleInCooldown")
        cooldown = DEFAULT_COOLDOWN if given is None else float(given)
        return bool(utcnow() - moment < timedelta(seconds=cooldown / self._speed))
