"""DescribeTags calls an Elastic IP elastic-ip; moto calls it vpc-elastic-ip, and finds none by the right name.

Source: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TagSpecification.html (ResourceType)
"""

from __future__ import annotations

import moto.ec2.models.tags as tags

from local_aws.patching import Patcher


def apply(patch: Patcher) -> None:
    patch.setattr(tags, "EC2_PREFIX_TO_RESOURCE", {**tags.EC2_PREFIX_TO_RESOURCE, "eipalloc": "elastic-ip"})
