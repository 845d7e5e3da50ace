"""What every unit test has: the collection of this checkout, importable as Ansible imports it, and a quick botocore."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.loaders
import pytest
from ansible.plugins.loader import init_plugin_loader

COLLECTIONS = Path(__file__).resolve().parents[2] / ".ansible" / "collections"
if not (COLLECTIONS / "ansible_collections" / "mlops" / "mlflow_aws" / "galaxy.yml").is_file():
    raise RuntimeError(
        f"Failed to import the collection from {COLLECTIONS}: the link there is missing. Run make setup."
    )
# For processes that a test starts; in this one Ansible finds it by itself, as its lookups need.
sys.path.insert(0, str(COLLECTIONS))
init_plugin_loader([str(COLLECTIONS)])


@pytest.fixture(scope="session", autouse=True)
def _one_loader() -> Iterator[None]:
    """New sessions share what botocore has parsed; else parsing EC2's model alone takes most of the time."""
    loader = botocore.loaders.create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.loaders, "create_loader", lambda *_: loader)
        yield
