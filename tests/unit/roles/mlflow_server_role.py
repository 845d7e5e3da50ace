"""Renders the templates of roles/mlflow_server as Ansible does for the role: its defaults, its vars, and inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[3] / "roles/mlflow_server"


def rendered(template: str, **inputs: Any) -> str:
    """Return the text of a template of the role with these inputs and facts."""
    return filled((ROLE / "templates" / template).read_text(encoding="utf-8"), **inputs)


def filled(text: str, **inputs: Any) -> str:
    """Return what a template's text becomes with these inputs and facts."""
    loader = DataLoader()
    # Where its lookups find templates and files, as in a play.
    loader.set_basedir(str(ROLE))
    variables: dict[str, Any] = {"ansible_managed": "Ansible managed", "role_path": str(ROLE)}
    for path in ("defaults/main.yml", "vars/main.yml"):
        variables |= loader.load_from_file(str(ROLE / path), cache="none", trusted_as_template=True)
    return str(Templar(loader=loader, variables=variables | inputs).template(trust_as_template(text)))
