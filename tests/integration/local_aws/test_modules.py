"""The AWS modules of the roles, against the local AWS: the first run builds, the second one changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, free_cidr, local_aws, variables


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    local_aws(tmp_path / "state", "start")
    try:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        yield {
            **plain,
            **variables(tmp_path / "state"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_FORCE_COLOR": "0",
        }
    finally:
        local_aws(tmp_path / "state", "stop")


def run(playbook: str, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    inventory = ["-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(
        [program, str(Path(__file__).with_name(playbook)), *inventory, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert done.returncode == 0, [
        t for p in result["plays"] for t in p["tasks"] if t["hosts"]["localhost"].get("failed")
    ]
    return dict(result)


def changed(result: dict[str, Any]) -> list[str]:
    tasks = [task for play in result["plays"] for task in play["tasks"]]
    return [task["task"]["name"] for task in tasks if any(host.get("changed") for host in task["hosts"].values())]


@pytest.mark.parametrize(("playbook", "changes"), [("modules.yml", 20), ("balancers.yml", 12)])
def test_the_second_run_changes_nothing(
    playbook: str, changes: int, environment: dict[str, str], tmp_path: Path
) -> None:
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    arguments = ("-e", f"modules_cidr={free_cidr(range(150, 200))}", "-e", f"modules_key={key}.pub")
    assert len(changed(run(playbook, environment, *arguments))) > changes
    assert changed(run(playbook, environment, *arguments)) == []
