"""What every unit test needs: the collection importable from this checkout, wherever it lies, as Ansible imports it."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

COLLECTIONS = Path(__file__).resolve().parents[2] / ".ansible" / "collections"
if not (COLLECTIONS / "ansible_collections" / "mlops" / "mlflow_aws" / "galaxy.yml").is_file():
    raise RuntimeError(
        f"Failed to import the collection from {COLLECTIONS}: the link there is missing. Run make setup."
    )
# For processes that a test starts; in this one Ansible finds it by itself, as its lookups need.
sys.path.insert(0, str(COLLECTIONS))
init_plugin_loader([str(COLLECTIONS)])
