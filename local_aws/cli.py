"""The command line: `python -m local_aws start|stop|status|reset|env|enforce|zone|images`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from local_aws import engine
from local_aws.daemon import CONTROL
from local_aws.errors import LocalAwsError, UnavailableError
from local_aws.images import SUITES, Images
from local_aws.server import LOOPBACK
from local_aws.state import DEFAULT_REGION, DEFAULT_STATE_DIR, INTERNAL_NAME, Settings, StateDir

NO_BASE = 3
READY_SECONDS = 60.0
STOP_SECONDS = 60.0
FREE_PORTS = range(20000, 32000)
PORTS = 4


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(prog="python -m local_aws", description=__doc__)
    main_parser.add_argument(
        "--state-dir",
        type=Path,
        default=DEFAULT_STATE_DIR,
        help="where the account keeps its files (default: %(default)s)",
    )
    commands = main_parser.add_subparsers(dest="command", required=True)

    start = commands.add_parser("start", help="build images if needed, start the account, print its endpoint")
    start.add_argument("--port", type=int, default=0, help="HTTPS port; 0 takes the last one again, or a free one")
    start.add_argument("--region", default=DEFAULT_REGION, help="region that `env` names (default: %(default)s)")
    start.add_argument("--zone", action="append", default=[], help="create a public hosted zone; repeatable")
    images = commands.add_parser("images", help="build the images, if needed, and print their tags as JSON")
    images.add_argument(
        "--suite",
        dest="host_image",
        default="auto",
        choices=SUITES,
        help=f"distribution to build from; status {NO_BASE} says that it cannot be had on this machine",
    )
    for command in (start, images):
        command.add_argument(
            "--host-image",
            default="auto",
            help="image to build hosts and databases from (default: Ubuntu 24.04, else Debian 12)",
        )
        command.add_argument(
            "--ca-bundle",
            type=Path,
            help="certificates that apt trusts while images are built, for an intercepting proxy",
        )
        command.add_argument("--mirror", help="Debian mirror for debootstrap (default: its own)")
    commands.add_parser("stop", help="end everything; containers and networks are removed")
    commands.add_parser("status", help="print what there is, as JSON")
    commands.add_parser("reset", help="empty the account")
    commands.add_parser("env", help="print the shell variables that point AWS clients at the account")
    enforce = commands.add_parser("enforce", help="switch the enforcement of IAM policies and signatures")
    enforce.add_argument("switch", choices=["on", "off"])
    zone = commands.add_parser("zone", help="create a public hosted zone")
    zone.add_argument("name")
    serve = commands.add_parser("_serve")
    serve.add_argument("settings")
    for command in commands.choices.values():
        # also after the command's name; without a default, since that one would win over the first
        command.add_argument("--state-dir", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return main_parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    state = StateDir(arguments.state_dir)
    try:
        if arguments.command == "start":
            start(state, arguments)
        elif arguments.command == "images":
            print(json.dumps(dataclasses.asdict(build_images(arguments))))
        elif arguments.command == "stop":
            stop(state)
        elif arguments.command == "status":
            print(json.dumps(status(state), indent=2))
        elif arguments.command == "env":
            print(environment(state), end="")
        elif arguments.command == "_serve":
            from local_aws.daemon import main as daemon_main

            daemon_main(state, arguments.settings)
        else:
            argument = {"enforce": "switch", "zone": "name"}.get(arguments.command)
            ask(state, arguments.command, getattr(arguments, argument) if argument else "")
    except LocalAwsError as error:
        say(str(error))
        return NO_BASE if isinstance(error, UnavailableError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def ca_bundle(arguments: argparse.Namespace) -> Path | None:
    """What apt trusts while images are built. Raises LocalAwsError."""
    bundle = arguments.ca_bundle or next(
        (Path(os.environ[name]) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None
    )
    if arguments.ca_bundle and not arguments.ca_bundle.is_file():
        raise LocalAwsError(f"The file {arguments.ca_bundle} of --ca-bundle does not exist.")
    if bundle is not None and not bundle.is_file():
        return None  # a variable that points nowhere is none of our business
    return bundle.resolve() if bundle else None


def build_images(arguments: argparse.Namespace) -> Images:
    from local_aws import images

    return images.ensure(engine.connect(), arguments.host_image, ca_bundle(arguments), arguments.mirror, say)


def start(state: StateDir, arguments: argparse.Namespace) -> None:
    with state.command_lock():
        running = state.daemon()
        if running:
            say(f"The local AWS runs already, pid {running['pid']}.")
            print(endpoint(running["port"]))
            return
        started = time.monotonic()
        built = build_images(arguments)
        ports = choose_ports(state, arguments.port)
        settings = Settings(
            port=ports[0],
            http_port=ports[1],
            metadata_port=ports[2],
            region=arguments.region,
            host_image=built.host,
            database_image=built.database,
            base_image=built.base,
            zones=arguments.zone,
            registry_port=ports[3],
            ca_bundle=str(bundle) if (bundle := ca_bundle(arguments)) else None,
        )
        state.write("ports.json", json.dumps({"ports": ports}))
        launch(state, settings)
        state.write("env", environment(state))
        say(f"The local AWS is ready ({time.monotonic() - started:.1f} s).")
        print(endpoint(settings.port))


def choose_ports(state: StateDir, wanted: int) -> list[int]:
    """Ports of HTTPS, HTTP, metadata and registry: the last run's if they are free, so that endpoints stay valid."""
    last = state.read_json("ports.json").get("ports", [])
    if len(last) == PORTS and wanted in (0, last[0]) and all(is_free(port) for port in last):
        return list(last)
    if wanted and not is_free(wanted):
        raise LocalAwsError(f"Port {wanted} is taken on {LOOPBACK}: choose another with --port, or 0 for a free one.")
    ports = [wanted] if wanted else []
    # below the range that clients' own ports come from: nobody takes them between two runs
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        if len(ports) == PORTS:
            break
        if port != wanted and is_free(port):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def launch(state: StateDir, settings: Settings) -> None:
    """Start the daemon detached from this process and wait until it answers."""
    failed = state.path / "failed"
    failed.unlink(missing_ok=True)
    root = str(Path(__file__).parents[1])
    with state.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "local_aws", "--state-dir", str(state.path), "_serve", settings.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
        )
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            reason = failed.read_text() if failed.exists() else f"The daemon ended at once; see {state.log}."
            raise LocalAwsError(reason)
        if state.read_json("daemon.json").get("pid") == process.pid:
            ask(state, "status", "")
            return
        time.sleep(0.05)
    process.kill()
    raise LocalAwsError(f"The daemon was not ready after {READY_SECONDS:.0f} s; see {state.log}.")


def stop(state: StateDir) -> None:
    """End the daemon if one runs, then remove what is left of it: also what a killed one left."""
    if not state.path.exists():
        say("The local AWS does not run.")
        return
    with state.command_lock():
        running = state.daemon()
        if running:
            end(state, int(running["pid"]))
        removed = engine.remove_leftovers(engine.connect(), state)
        (state.path / "daemon.json").unlink(missing_ok=True)
    say("The local AWS is stopped." if running or removed else "The local AWS does not run.")


def end(state: StateDir, pid: int) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not state.daemon_runs():
                return
            time.sleep(0.05)
    raise LocalAwsError(f"The daemon (pid {pid}) does not end.")


def status(state: StateDir) -> dict[str, Any]:
    running = state.daemon() if state.path.exists() else {}
    if not running:
        nothing: dict[str, Any] = {
            kind: [] for kind in ("instances", "databases", "database_proxies", "balancers", "networks")
        }
        return {"running": False, "pid": None, "endpoint": None, **nothing}
    return {
        "running": True,
        "pid": running["pid"],
        "endpoint": endpoint(running["port"]),
        "region": running["region"],
        **ask(state, "status", ""),
    }


def endpoint(port: int) -> str:
    return f"https://{LOOPBACK}:{port}"


def environment(state: StateDir) -> str:
    """Shell text that exports what any AWS client needs. Raises LocalAwsError when nothing runs."""
    running = state.daemon() if state.path.exists() else {}
    if not running:
        raise LocalAwsError("The local AWS does not run: start it with 'python -m local_aws start'.")
    key_id, key_secret = state.admin_keys()
    variables = {
        "AWS_ENDPOINT_URL": endpoint(running["port"]),
        "AWS_CA_BUNDLE": str(state.ca_file),
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": key_secret,
        "AWS_REGION": running["region"],
        "AWS_DEFAULT_REGION": running["region"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_S3_ENDPOINT_URL": f"https://{INTERNAL_NAME}:{running['port']}",
        "LOCAL_AWS_CA_FILE": str(state.ca_file),
        "LOCAL_AWS_BASE_IMAGE": running["base_image"],
    }
    return "".join(f"export {name}='{value}'\n" for name, value in variables.items())


def ask(state: StateDir, command: str, argument: str) -> dict[str, Any]:
    """Send a command to the daemon; returns its answer. Raises LocalAwsError."""
    running = state.daemon() if state.path.exists() else {}
    if not running:
        raise LocalAwsError("The local AWS does not run: start it with 'python -m local_aws start'.")
    request = urllib.request.Request(
        f"{endpoint(running['port'])}{CONTROL}{command}",
        data=argument.encode(),
        headers={"X-Local-Aws-Token": state.secret("control_token")},
        method="POST",
    )
    context = ssl.create_default_context(cafile=str(state.ca_file))
    # a proxy of the environment is for the outside, never for loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=180) as response:
            answer = json.load(response)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise LocalAwsError(
            f"The daemon (pid {running['pid']}) did not answer '{command}': {error}; see {state.log}."
        ) from error
    return answer if isinstance(answer, dict) else {}
