"""What the tests of all topologies do: run a stack twice, and keep clients busy meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stack import Account, Control


def instances(account: Account, stack: str) -> list[dict[str, Any]]:
    """The stack's running instances, by name."""
    running = [{"Name": "instance-state-name", "Values": ["running"]}, {"Name": "tag:mlflow:stack", "Values": [stack]}]
    found = account.client("ec2").describe_instances(Filters=running)["Reservations"]
    every = [instance for group in found for instance in group["Instances"]]
    return sorted(every, key=name)


def name(instance: dict[str, Any]) -> str:
    return str({tag["Key"]: tag["Value"] for tag in instance["Tags"]}["Name"])


def site(control: Control, **inputs: Any) -> None:
    """Run site.yml with these inputs, and once more: nothing is left to change."""
    control.write(**inputs)
    first = control.playbook("site.yml", timeout=1800).succeeded()
    again = control.playbook("site.yml", timeout=1800).succeeded()
    assert again.changed and set(again.changed.values()) == {0}, again.output
    print(f"\n{inputs}: {first.seconds:.0f} s, again {again.seconds:.0f} s")


@contextmanager
def load(control: Control, python: Path) -> Iterator[dict[str, Any]]:
    """Keep clients busy meanwhile; the dictionary is filled with what they saw at the end."""
    seen: dict[str, Any] = {}
    with subprocess.Popen(
        [python, Path(__file__).with_name("load.py")],
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
    seen.update(json.loads(output.rpartition("RESULT ")[2]))
    print(f"\nSlow: {seen['slow']}")
    print(f"{seen['requests']} requests, longest {seen['longest']:.2f} s, {len(seen['failures'])} failed")
