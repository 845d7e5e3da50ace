"""What a role may do, while IAM is enforced: for calls that the local AWS makes in a role's name."""

from __future__ import annotations

import math

from moto import settings
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.models import iam_backends
from moto.utilities.utils import get_partition


def allowed(account: str, region: str, role_arn: str, action: str, resource: str) -> bool:
    """Whether the policies of a role permit an action; anything is while nothing is enforced."""
    if math.isinf(settings.INITIAL_NO_AUTH_ACTION_COUNT):
        return True
    backend = iam_backends[account][get_partition(region)]
    name = role_arn.rpartition("/")[2]
    inline = [backend.get_role_policy(name, policy)[1] for policy in backend.list_role_policies(name)]
    attached, _marker = backend.list_attached_role_policies(name)
    verdicts = [IAMPolicy(policy).is_action_permitted(action, resource) for policy in [*inline, *attached]]
    return PermissionResult.DENIED not in verdicts and PermissionResult.PERMITTED in verdicts
