"""What moto answers differently from AWS, and what AWS answers; one module each."""

from local_aws.patching import Patcher


def apply_all(patch: Patcher) -> None:
    """Apply every correction."""
