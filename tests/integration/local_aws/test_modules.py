"""The AWS modules of the roles, against the local AWS: the first run builds, the second one changes nothing."""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from local_aws.networks import overlap, used_ranges

ROOT = Path(__file__).parents[3]


def free_cidr() -> str:
    used = used_ranges(docker.from_env())
    blocks = (ipaddress.IPv4Network(f"10.{number}.0.0/16") for number in range(150, 200))
    return str(next(block for block in blocks if overlap(block, used) is None))


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "local_aws", "--state-dir", str(tmp_path / "state")]
    subprocess.run([*command, "start"], cwd=ROOT, check=True, timeout=300)
    try:
        done = subprocess.run([*command, "env"], cwd=ROOT, check=True, capture_output=True, text=True)
        exported = dict(word.split("=", 1) for word in shlex.split(done.stdout) if "=" in word)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        yield {**plain, **exported, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_FORCE_COLOR": "0"}
    finally:
        subprocess.run([*command, "stop"], cwd=ROOT, check=True, timeout=120)


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
    arguments = ("-e", f"modules_cidr={free_cidr()}", "-e", f"modules_key={key}.pub")
    assert len(changed(run(playbook, environment, *arguments))) > changes
    assert changed(run(playbook, environment, *arguments)) == []
