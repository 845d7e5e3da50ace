"""Stand up the demo stack on the local AWS with the real site.yml, or remove it with the real teardown.yml.

Usage: python -m tools.demo up|down [ARGUMENT OF ansible-playbook ...]

Standard library only: it makes the environment in which everything else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from tools import environment, machine
from tools.console import ROOT, STATE, VENV, ProblemError, Times, fail, say, state_dir

STACK = "demo"
STACK_DIR = STATE / STACK
LOCAL_AWS = [str(environment.PYTHON), "-m", "local_aws"]
RECAP = re.compile(r"(?P<host>\S+)\s+: ok=\d+\s+changed=(?P<changed>\d+)\s+unreachable=\d+\s+failed=\d+")


def clean_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment from which no real AWS account and no other tracking server can be reached by mistake."""
    kept = {name: value for name, value in env.items() if not name.startswith(("AWS_", "BOTO_", "MLFLOW_"))}
    kept["AWS_CONFIG_FILE"] = kept["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    # A company proxy must not be asked for what is on this machine.
    local = ["127.0.0.1", "localhost", "aws.internal"]
    for name in ("no_proxy", "NO_PROXY"):
        kept[name] = ",".join([part for part in (env.get(name, ""),) if part] + local)
    return kept


def local_aws(command: str, env: Mapping[str, str]) -> None:
    """Run a command of the local AWS, its output going to the user.

    Raises: ProblemError when it fails.
    """
    status = subprocess.run([*LOCAL_AWS, command], env=dict(env), cwd=ROOT, check=False).returncode
    if status != 0:
        raise ProblemError(f"`python -m local_aws {command}` failed (exit status {status}); its own words are above.")


def local_aws_output(command: str, env: Mapping[str, str]) -> str:
    """Return what a command of the local AWS prints.

    Raises: ProblemError when it fails.
    """
    done = subprocess.run(
        [*LOCAL_AWS, command], env=dict(env), cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise ProblemError(f"`python -m local_aws {command}` failed (exit status {done.returncode}).")
    return done.stdout


def is_running(env: Mapping[str, str]) -> bool:
    """Tell whether the local AWS runs, and with it its account."""
    return bool(json.loads(local_aws_output("status", env))["running"])


def account_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with what points every AWS client at the local AWS.

    Raises: ProblemError when that is not on this machine: a demo must never build in a real account.
    """
    words = [shlex.split(line) for line in local_aws_output("env", env).splitlines() if line.startswith("export ")]
    exported = dict(word.split("=", 1) for line in words for word in line[1:])
    endpoint = exported.get("AWS_ENDPOINT_URL", "")
    if urlsplit(endpoint).hostname not in ("127.0.0.1", "localhost"):
        raise ProblemError(
            f"The local AWS names the endpoint {endpoint!r}, which is not this machine: nothing was done."
        )
    return {**env, **exported}


def playbook(name: str, arguments: Sequence[str], env: Mapping[str, str]) -> dict[str, int]:
    """Run a playbook on the user's own terminal and return the number of changes per host, from its recap.

    Raises: ProblemError when it fails.
    """
    STACK_DIR.mkdir(mode=0o700, exist_ok=True)
    log = STACK_DIR / f"{name}.log"
    log.unlink(missing_ok=True)
    command = [str(VENV / "bin/ansible-playbook"), f"{name}.yml", "-i", "inventories/local", *arguments]
    # Ansible writes the log beside its live output, so the recap can be read and the terminal stays its own.
    status = subprocess.run(command, env={**env, "ANSIBLE_LOG_PATH": str(log)}, cwd=ROOT, check=False).returncode
    if status != 0:
        raise ProblemError(
            f"{name}.yml failed (exit status {status}); why is above and in {log.relative_to(ROOT)}. "
            "`make demo` continues where it stopped, `make demo-down` removes what there is."
        )
    return changes(log.read_text(errors="replace") if log.exists() else "")


def changes(log: str) -> dict[str, int]:
    """Return the number of changed tasks per host from the last recap of Ansible's log."""
    recap = log.rpartition("PLAY RECAP")[2]
    return {match["host"]: int(match["changed"]) for match in RECAP.finditer(recap)}


def result(name: str) -> dict[str, Any]:
    """Read what a playbook left as its result for the stack.

    Raises: ProblemError when it left none.
    """
    path = STACK_DIR / name
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ProblemError(f"The playbook ended well but left no result in {path.relative_to(ROOT)}.") from error


def verified_seconds() -> str:
    """Return how long the last run of site.yml took to verify the endpoint, as its log says it.

    The time is no part of verified.json: a file that changes with every run would be a change in every run.
    """
    seconds = re.findall(r"Verified in ([0-9.]+) s", (STACK_DIR / "site.log").read_text(errors="replace"))
    if not seconds:
        raise ProblemError("site.yml ended well but its log does not say that it verified the endpoint.")
    return str(seconds[-1])


def up(arguments: Sequence[str]) -> None:
    """Bring the demo up, or prove that it is up, and say where it is."""
    times = Times()
    env = clean_env(machine.ensure(times))
    state_dir()
    if not is_running(env):
        # Keys and known hosts of an account that is gone would be taken for this one's.
        shutil.rmtree(STACK_DIR, ignore_errors=True)
    with times.step("Local AWS"):
        local_aws("start", env)
    env = account_env(env)
    with times.step("site.yml"):
        changed = playbook("site", arguments, env)
    verified = result("verified.json")
    every = "every host" if len(changed) > 1 else "the only host"
    say("")
    if not any(changed.values()):
        say(f"Nothing had to be changed: changed=0 on {every} ({', '.join(changed)})")
    else:
        say("Changed: " + ", ".join(f"{host} {count}" for host, count in changed.items()))
    say(times.report())
    say(
        f"MLflow is up:  {verified['url']}      user: {verified['username']}   "
        f"password: in {STACK_DIR.relative_to(ROOT)}/client.env"
    )
    say(f"Verified in {verified_seconds()} s: {verified['summary']}")


def down(arguments: Sequence[str]) -> None:
    """Remove the demo's stack with the real teardown, then stop the local AWS; nothing there is nothing to do."""
    if not STATE.exists():
        say("Nothing was ever started here: 0 resources left")
        return
    times = Times()
    env = clean_env(machine.ensure(times))
    remaining: list[Any] = []
    if is_running(env):
        (STACK_DIR / "teardown.json").unlink(missing_ok=True)
        confirmed = ["-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete"]
        with times.step("teardown.yml"):
            playbook("teardown", [*confirmed, *arguments], account_env(env))
        remaining = result("teardown.json")["remaining"]
    with times.step("Local AWS"):
        local_aws("stop", env)
    # The account ended with the local AWS, and these are its keys.
    shutil.rmtree(STACK_DIR, ignore_errors=True)
    say("")
    say(times.report())
    say(f"{len(remaining)} resources left" + "".join(f"\n    {resource}" for resource in remaining))
    if remaining:
        raise ProblemError("The teardown left the resources above.")


def main() -> None:
    """Run the command asked for."""
    parser = argparse.ArgumentParser(description="Stand up or remove the demo stack on the local AWS.")
    parser.add_argument("command", choices=("up", "down"))
    options, arguments = parser.parse_known_args()
    try:
        (up if options.command == "up" else down)(arguments)
    except ProblemError as problem:
        fail(problem)
    except KeyboardInterrupt:
        fail(ProblemError("Interrupted: the same command continues, `make demo-down` removes what there is."))


if __name__ == "__main__":
    main()
