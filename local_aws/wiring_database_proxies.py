"""Ties moto's RDS Proxies to the containers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.rds.exceptions import RDSClientError
from moto.rds.models import DBProxy, DBProxyTarget, RDSBackend
from moto.rds.responses import RDSResponse

from local_aws.database_proxies import DatabaseProxies, health
from local_aws.networks import CidrOverlapError
from local_aws.patching import Patcher
from local_aws.wiring import SETTLE_SECONDS

FOLLOWED = (
    "modify_db_proxy",
    "modify_db_proxy_target_group",
    "register_db_proxy_targets",
    "deregister_db_proxy_targets",
)


def connect(proxies: DatabaseProxies, patch: Patcher) -> None:
    """Install all hooks. Call once, after the corrections."""
    create, delete = RDSBackend.create_db_proxy, RDSBackend.delete_db_proxy

    def create_db_proxy(self: Any, *args: Any, **kwargs: Any) -> DBProxy:
        proxy: DBProxy = create(self, *args, **kwargs)
        if proxy.engine_family != "POSTGRESQL":
            return proxy  # no other engine really runs
        ec2 = ec2_backends[self.account_id][self.region_name]
        subnet = ec2.get_subnet(proxy.vpc_subnet_ids[0])
        try:
            proxies.create(proxy, subnet, ec2.get_vpc(subnet.vpc_id))
        except CidrOverlapError as error:
            self.db_proxies.pop(proxy.db_proxy_name)
            raise RDSClientError("InvalidSubnet", str(error)) from error
        return proxy

    def delete_db_proxy(self: Any, proxy_name: str) -> DBProxy:
        proxy: DBProxy = delete(self, proxy_name)
        proxies.delete(proxy)
        proxy.status = "deleting"
        return proxy

    def following(original: Callable[..., Any]) -> Callable[..., Any]:
        """An operation of moto; then the proxies look at what has changed."""

        @functools.wraps(original)
        def operation(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            proxies.refresh()
            return result

        return operation

    def settled(original: Callable[[RDSResponse], ActionResult]) -> Callable[[RDSResponse], ActionResult]:
        """A description that waits a little for what is under way."""

        @functools.wraps(original)
        def operation(self: RDSResponse) -> ActionResult:
            proxies.settle(SETTLE_SECONDS)
            return original(self)

        return operation

    patch.setattr(RDSBackend, "create_db_proxy", create_db_proxy)
    patch.setattr(RDSBackend, "delete_db_proxy", delete_db_proxy)
    for name in FOLLOWED:
        patch.setattr(RDSBackend, name, following(getattr(RDSBackend, name)))
    for name in ("describe_db_proxies", "describe_db_proxy_targets"):
        patch.setattr(RDSResponse, name, settled(getattr(RDSResponse, name)))
    patch.setattr(DBProxyTarget, "target_health", property(health))
