"""ListAccountSettings with effectiveSettings tells what is in force, whoever set it; moto tells only what was set.

The long formats of ARNs are in force in every account.

Sources: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ListAccountSettings.html
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/ecs-account-settings.html
"""

from __future__ import annotations

from moto.core.responses import ActionResult
from moto.ecs.models import AccountSetting
from moto.ecs.responses import EC2ContainerServiceResponse

from local_aws.patching import Patcher

DEFAULTS = {
    "serviceLongArnFormat": "enabled",
    "taskLongArnFormat": "enabled",
    "containerInstanceLongArnFormat": "enabled",
    "awsvpcTrunking": "disabled",
    "containerInsights": "disabled",
    "dualStackIPv6": "enabled",
}


def apply(patch: Patcher) -> None:
    respond = EC2ContainerServiceResponse.list_account_settings

    def list_account_settings(self: EC2ContainerServiceResponse) -> ActionResult:
        if not self._get_param("effectiveSettings"):
            return respond(self)
        name, value, backend = self._get_param("name"), self._get_param("value"), self.ecs_backend
        defaults = [AccountSetting(*pair) for pair in DEFAULTS.items() if pair[0] not in backend.account_settings]
        wanted = [s for s in defaults if name in (None, s.name) and value in (None, s.value)]
        return ActionResult({"settings": [*backend.list_account_settings(name, value), *wanted]})

    patch.setattr(EC2ContainerServiceResponse, "list_account_settings", list_account_settings)
