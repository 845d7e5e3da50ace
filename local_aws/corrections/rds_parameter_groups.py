"""DescribeDBParameterGroups of a name that does not exist is DBParameterGroupNotFound; moto answers an empty list.

Source: https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_DescribeDBParameterGroups.html (errors)
"""

from __future__ import annotations

from typing import Any

from moto.rds.exceptions import DBParameterGroupNotFoundError
from moto.rds.models import DBParameterGroup, RDSBackend

from local_aws.patching import Patcher


def apply(patch: Patcher) -> None:
    original = RDSBackend.describe_db_parameter_groups

    def describe_db_parameter_groups(self: RDSBackend, db_parameter_group_kwargs: Any) -> list[DBParameterGroup]:
        groups: list[DBParameterGroup] = original(self, db_parameter_group_kwargs)
        name = db_parameter_group_kwargs.get("db_parameter_group_name")
        if name and not groups:
            raise DBParameterGroupNotFoundError(name)
        return groups

    patch.setattr(RDSBackend, "describe_db_parameter_groups", describe_db_parameter_groups)
