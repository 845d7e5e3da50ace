"""An RDS Proxy can be modified, has one database behind it, and is not known by another name.

moto has no ModifyDBProxy, registers any number of databases, also such as it does not know, and answers a name that
it does not know with an internal error.

Sources: https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_ModifyDBProxy.html
https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_RegisterDBProxyTargets.html (Errors)
https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy.html#rds-proxy.limitations
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.rds.exceptions import DBProxyNotFoundFault, RDSClientError
from moto.rds.models import DBProxy, RDSBackend
from moto.rds.responses import RDSResponse

from local_aws.patching import Patcher

OF_A_PROXY = (
    "deregister_db_proxy_targets",
    "delete_db_proxy",
    "describe_db_proxy_targets",
    "describe_db_proxy_target_groups",
    "modify_db_proxy_target_group",
)
# What ModifyDBProxy may change: parameters of the request, and moto's names for them.
MODIFIABLE = {
    "Auth": "auth",
    "RequireTLS": "require_tls",
    "IdleClientTimeout": "idle_client_timeout",
    "DebugLogging": "debug_logging",
    "RoleArn": "role_arn",
    "SecurityGroups": "vpc_security_group_ids",
}


def apply(patch: Patcher) -> None:
    register = RDSBackend.register_db_proxy_targets

    def known(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def operation(self: Any, *args: Any, **kwargs: Any) -> Any:
            _find(self, next(iter([*args, *kwargs.values()])))  # the name comes first in all of them
            return original(self, *args, **kwargs)

        return operation

    def register_db_proxy_targets(
        self: Any,
        db_proxy_name: str,
        target_group_name: str,
        db_cluster_identifiers: list[str],
        db_instance_identifiers: list[str],
    ) -> Any:
        group = _find(self, db_proxy_name).proxy_target_groups["default"]
        wanted = [*db_cluster_identifiers, *db_instance_identifiers]
        if group.targets:
            text = f"The proxy {db_proxy_name} is already associated with {group.targets[0].rds_resource_id}."
            raise RDSClientError("DBProxyTargetAlreadyRegisteredFault", text)
        if len(wanted) != 1:
            raise RDSClientError("InvalidParameterCombination", "Exactly one database can be registered.")
        instances = [self.describe_db_instances(name)[0] for name in db_instance_identifiers]
        if any(instance.status == "creating" for instance in instances):
            raise RDSClientError("InvalidDBInstanceState", f"DB instance {wanted[0]} is not in an available state.")
        targets = register(self, db_proxy_name, target_group_name, db_cluster_identifiers, db_instance_identifiers)
        for target, instance in zip(targets, instances, strict=False):
            target.endpoint, target.port = instance.address, int(instance.port or target.port)
        return targets

    def modify_db_proxy(self: Any, db_proxy_name: str, changes: dict[str, Any]) -> DBProxy:
        proxy = _find(self, db_proxy_name)
        for parameter, attribute in MODIFIABLE.items():
            if parameter in changes:
                setattr(proxy, attribute, changes[parameter])
        proxy.updated_date = utcnow()
        return proxy

    def respond(self: RDSResponse) -> ActionResult:
        return ActionResult({"DBProxy": self.backend.modify_db_proxy(self.params["DBProxyName"], self.params)})

    for name in OF_A_PROXY:
        patch.setattr(RDSBackend, name, known(getattr(RDSBackend, name)))
    patch.setattr(RDSBackend, "register_db_proxy_targets", register_db_proxy_targets)
    patch.setattr(RDSBackend, "modify_db_proxy", modify_db_proxy, raising=False)
    patch.setattr(RDSResponse, "modify_db_proxy", respond, raising=False)


def _find(backend: Any, name: str) -> DBProxy:
    proxy: DBProxy | None = backend.db_proxies.get(name)
    if proxy is None:
        raise DBProxyNotFoundFault(name)
    return proxy
