"""What moto answers differently from AWS, and what AWS answers; one module each.

A module holds `apply(patch)` and says in its first lines what AWS does and where that is written. Its unit test asks
for both answers, without and with the correction: it fails when moto no longer needs it.
"""

from local_aws.corrections import (
    acm_imports,
    ecr_images,
    ecs_account_settings,
    ecs_clusters,
    ecs_scaling,
    elastic_ip_tags,
    elbv2_attributes,
    elbv2_dependencies,
    elbv2_target_groups,
    fargate_tasks,
    iam_statements,
    rds_offers,
    rds_parameter_groups,
    rds_proxies,
    rds_storage,
)
from local_aws.patching import Patcher

ALL = (
    acm_imports,
    ecr_images,
    ecs_account_settings,
    ecs_clusters,
    ecs_scaling,
    elastic_ip_tags,
    elbv2_attributes,
    elbv2_dependencies,
    elbv2_target_groups,
    fargate_tasks,
    iam_statements,
    rds_offers,
    rds_parameter_groups,
    rds_proxies,
    rds_storage,
)


def apply_all(patch: Patcher) -> None:
    """Apply every correction."""
    for correction in ALL:
        correction.apply(patch)
