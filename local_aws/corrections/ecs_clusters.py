"""A cluster always tells its capacity providers, if only that there are none; moto leaves them out.

And CreateCluster of a cluster that is there changes nothing; moto makes it anew.

Sources: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Cluster.html
https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_CreateCluster.html
"""

from __future__ import annotations

from typing import Any

from moto.ecs.models import Cluster, EC2ContainerServiceBackend

from local_aws.patching import Patcher


def apply(patch: Patcher) -> None:
    create = EC2ContainerServiceBackend.create_cluster

    def create_cluster(self: Any, cluster_name: str, *args: Any, **kwargs: Any) -> Cluster:
        existing = self.clusters.get(cluster_name)
        if existing is not None and existing.status == "ACTIVE":
            return existing
        cluster = create(self, cluster_name, *args, **kwargs)
        cluster.capacity_providers = cluster.capacity_providers or []
        cluster.default_capacity_provider_strategy = cluster.default_capacity_provider_strategy or []
        return cluster

    patch.setattr(EC2ContainerServiceBackend, "create_cluster", create_cluster)
