"""RDS always reports StorageThroughput, and for gp3 also Iops: what was asked for, or the baseline. moto does not.

Source: https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Storage.html#gp3-storage
"""

from __future__ import annotations

from typing import Any

from moto.rds.models import DBInstance, RDSBackend

from local_aws.patching import Patcher

STRIPED_FROM_GIB = 400  # PostgreSQL volumes from this size on are striped over four, with four times the baseline
BASELINE = (3000, 125)  # IOPS and MiB/s
STRIPED_BASELINE = (12000, 500)


def baseline(allocated_gib: int) -> tuple[int, int]:
    """IOPS and MiB/s that gp3 gives at no charge."""
    return STRIPED_BASELINE if allocated_gib >= STRIPED_FROM_GIB else BASELINE


def apply(patch: Patcher) -> None:
    create = RDSBackend.create_db_instance
    setter = vars(DBInstance)["storage_throughput"].fset

    def storage_throughput(self: DBInstance) -> int:
        if self.storage_type != "gp3":
            return 0
        return int(self._storage_throughput or baseline(int(self.allocated_storage))[1])

    def create_db_instance(self: RDSBackend, db_kwargs: Any) -> DBInstance:
        database = create(self, db_kwargs)
        if not database.db_cluster_identifier and database.storage_type == "gp3" and not database.iops:
            database.iops = str(baseline(int(database.allocated_storage))[0])
        return database

    patch.setattr(DBInstance, "storage_throughput", property(storage_throughput, setter))
    patch.setattr(RDSBackend, "create_db_instance", create_db_instance)
