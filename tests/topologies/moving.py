"""What the tests of all topologies do: run a stack twice, and keep clients busy meanwhile."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stack import ROOT, Account, Control

LOCK = ROOT / "roles/mlflow_server/files/requirements/mlflow-3.17.2.txt"
# Seconds that a user of a server that only changes may have to wait, on a machine that does much else.
PATIENCE = 30.0
OLDER = Path(__file__).parent / "requirements/mlflow-3.16.0.txt"


def instances(account: Account, stack: str) -> list[dict[str, Any]]:
    """The stack's running instances, by name."""
    running = [{"Name": "instance-state-name", "Values": ["running"]}, {"Name": "tag:mlflow:stack", "Values": [stack]}]
    found = account.client("ec2").describe_instances(Filters=running)["Reservations"]
    every = [instance for group in found for instance in group["Instances"]]
    return sorted(every, key=name)


def name(instance: dict[str, Any]) -> str:
    return str({tag["Key"]: tag["Value"] for tag in instance["Tags"]}["Name"])


def clusters(account: Account) -> list[str]:
    """The names of the clusters that are there; ECS remembers a deleted one for a while."""
    ecs = account.client("ecs")
    found = ecs.describe_clusters(clusters=ecs.list_clusters()["clusterArns"])["clusters"]
    return [cluster["clusterName"] for cluster in found if cluster["status"] != "INACTIVE"]


def without(packages: str) -> str:
    """The role's lock without the packages whose names match."""
    return re.sub(rf"(?m)^(?:{packages})==.*\n(?:    .*\n)+", "", LOCK.read_text())


def older_release(directory: Path) -> dict[str, str]:
    """The inputs for a release with another schema; its lock is written to a directory."""
    lock = directory / "older.txt"
    lock.write_text(without(r"mlflow[a-z-]*") + OLDER.read_text())
    return {"mlflow_server_version": "3.16.0", "mlflow_server_requirements_file": str(lock)}


def eventually(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not check():
        assert time.monotonic() < end, "not within 120 s"
        time.sleep(1)


def site(control: Control, **inputs: Any) -> None:
    """Run site.yml with these inputs, and once more: nothing is left to change."""
    control.write(**inputs)
    first = control.playbook("site.yml", timeout=1800).succeeded()
    again = control.playbook("site.yml", timeout=1800).succeeded()
    assert again.changed and set(again.changed.values()) == {0}, again.output
    print(f"\n{inputs}: {first.seconds:.0f} s, again {again.seconds:.0f} s")


@dataclass
class Seen:
    """What the clients of a load saw; empty until they have ended."""

    requests: int = 0
    longest: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    slow: list[dict[str, Any]] = field(default_factory=list)

    def after(self, moment: float) -> list[dict[str, Any]]:
        """The failures of requests that began after a moment."""
        return [failure for failure in self.failures if failure["at"] > moment]


@contextmanager
def load(control: Control, python: Path, kind: str = "once") -> Iterator[Seen]:
    """Keep clients busy meanwhile, of the kind that load.py says."""
    seen = Seen()
    with subprocess.Popen(
        [python, Path(__file__).with_name("load.py"), kind],
        env=control.client_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "LOADING\n"
        try:
            yield seen
        finally:
            process.stdin.close()
            output = process.stdout.read()
    vars(seen).update(json.loads(output.rpartition("RESULT ")[2]))
    print(f"\n{kind}: {seen.requests} requests, longest {seen.longest:.2f} s, {len(seen.failures)} failed")
    for call in seen.slow + seen.failures[:20]:
        print(call)


@contextmanager
def both_loads(control: Control, python: Path) -> Iterator[Seen]:
    """Keep clients of both kinds busy; yields those that try once. The others must see no failure."""
    with load(control, python, "stock") as users, load(control, python) as seen:
        yield seen
    assert seen.requests > 100 and users.requests > 100
    assert users.failures == []
