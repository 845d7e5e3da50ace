"""What every unit test needs: the collection importable from this checkout, wherever it lies."""

from __future__ import annotations

import sys
from pathlib import Path

COLLECTIONS = Path(__file__).resolve().parents[2] / ".ansible" / "collections"
if not (COLLECTIONS / "ansible_collections" / "mlops" / "mlflow_aws" / "galaxy.yml").is_file():
    raise RuntimeError(
        f"Failed to import the collection from {COLLECTIONS}: the link there is missing. Run make setup."
    )
sys.path.insert(0, str(COLLECTIONS))
