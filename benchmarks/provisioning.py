"""Time from an empty account to launched hosts, and on to configured ones, for fleets of different sizes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.scaling import busy_seconds, used_seconds
from local_aws.engine import connect
from local_aws.instances import LABEL
from local_aws.state import StateDir
from tools.console import ROOT, ProblemError, say

# The control machine of the whole-stack tests is the same one that is timed here.
sys.path.append(str(ROOT / "tests/e2e"))

from stack import Account, Control

Json = dict[str, Any]
SIZES = (1, 4)
ROUNDS = 2
ZONE = "mlflow-bench.example.com"
LIMIT = 900
# The smallest class that carries the larger fleet, for both: nothing but the number of hosts may differ.
DATABASE_CLASS = "db.t4g.small"


def children_seconds() -> float:
    """Return the processor time of the programs that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def hosts_seconds(state: StateDir) -> float:
    """Return the processor time that the account's hosts have used."""
    labels = [LABEL, *(f"{name}={value}" for name, value in state.labels.items())]
    return sum(used_seconds(container) for container in connect().containers.list(filters={"label": labels}))


def timed(control: Control, playbook: str) -> Json:
    """Run a playbook; return its seconds, and the processor time of the control machine, the hosts and everything.

    Raises: ProblemError with the end of its output.
    """
    state = StateDir(control.account.directory)
    hosts, own, busy = hosts_seconds(state), children_seconds(), busy_seconds()
    try:
        run = control.playbook(playbook, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise ProblemError(f"{playbook} did not end within {LIMIT} s.") from error
    if run.status != 0:
        raise ProblemError(f"{playbook} failed (exit status {run.status}): {run.output[-3000:]}")
    say(f"    {playbook} for {control.inputs['mlflow_fleet_size']}: {run.seconds:.1f} s")
    return {
        "seconds": run.seconds,
        "control": children_seconds() - own,
        "hosts": hosts_seconds(state) - hosts,
        "busy": busy_seconds() - busy,
        "cpus": os.cpu_count(),
    }


def provisioning(directory: Path) -> Json:
    """Return what `timed` found of each playbook and size, each on an account of its own, another size first each time.

    The hosts are configured in the last round only, which takes minutes.
    """
    found: Json = {playbook: {str(size): [] for size in SIZES} for playbook in ("provision", "configure")}
    account = Account(directory / "account")
    try:
        for number in range(ROUNDS):
            for size in SIZES if number % 2 == 0 else reversed(SIZES):
                account.start(ZONE)
                home = directory / "control"
                shutil.rmtree(home, ignore_errors=True)
                control = Control(
                    home,
                    account,
                    mlflow_stack="bench",
                    mlflow_topology="fleet",
                    mlflow_fleet_size=size,
                    mlflow_database_class=DATABASE_CLASS,
                )
                for playbook in ("provision", "configure") if number == ROUNDS - 1 else ("provision",):
                    found[playbook][str(size)].append(timed(control, f"playbooks/{playbook}.yml"))
    except subprocess.CalledProcessError as error:
        raise ProblemError(f"The local AWS failed: {error}") from error
    finally:
        account.stop()
    return found
