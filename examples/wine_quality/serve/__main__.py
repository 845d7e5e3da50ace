"""Serve a registered model over HTTP: ask the tracking server for it, load it, answer on /invocations and /health.

Usage: python -m serve models:/ElasticnetWineModel/1

The answering is MLflow's own scoring server, with the packages that are installed here. This program only finds the
model, says what is wrong when it cannot, and becomes that server.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow.tracking import MlflowClient
from tracking import LOGIN, ProblemError, cause, connect, patience, shown, tracking_uri

MODEL = re.compile(r"models:/(?P<name>[^/:@]+)(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[^/:@]+))")


def model(text: str) -> re.Match[str]:
    """Parse the URI of a model. Raises: ArgumentTypeError unless it names a version or an alias."""
    match = MODEL.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} was given, models:/<name>/<version number> or models:/<name>@<alias> is allowed"
        )
    return match


def port(text: str) -> int:
    """Parse a TCP port. Raises: ArgumentTypeError unless it is a number from 1 to 65535."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} was given, a number from 1 to 65535 is allowed")
    return int(text)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="serve", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=model, help="models:/<name>/<version number> or models:/<name>@<alias>")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, %(default)s; it asks for no login")
    parser.add_argument("--port", type=port, default=8080, help="TCP port to listen on, %(default)s")
    return parser


def find(client: MlflowClient, wanted: re.Match[str]) -> ModelVersion:
    """Return the model version that was asked for.

    Raises: ProblemError when there is none, with those that there are.
    """
    try:
        if wanted["version"]:
            return client.get_model_version(wanted["name"], wanted["version"])
        return client.get_model_version_by_alias(wanted["name"], wanted["alias"])
    except MlflowException as error:
        try:
            registered = client.get_registered_model(wanted["name"])
        except MlflowException:
            there = "Register it with train.py, or give another name"
        else:
            newest = max((int(version.version) for version in registered.latest_versions), default=None)
            aliases = ", ".join(sorted(registered.aliases)) or "none"
            there = f"The model is there (newest version: {newest}, aliases: {aliases}); give one of these"
        raise ProblemError(
            f"Failed to find {wanted.string} on {shown(tracking_uri())}: {cause(error)}. {there}."
        ) from error


def download(version: ModelVersion) -> str:
    """Fetch the files of a model version; return the directory, a new one under the system's for temporary files.

    Raises: ProblemError when they cannot be fetched.
    """
    try:
        # Left there: the server that this process becomes reads it, and a container takes it along when it ends.
        directory = tempfile.mkdtemp(prefix="model-")
        uri = f"models:/{version.name}/{version.version}"
        found = mlflow.artifacts.download_artifacts(uri, dst_path=directory)
        # What is not in the store MLflow downloads as nothing, and calls that a success.
        if not Path(found, "MLmodel").is_file():
            raise FileNotFoundError(f"there is no file MLmodel in {version.source}")
    except (MlflowException, OSError) as error:
        raise ProblemError(
            f"Failed to download version {version.version} of {version.name} from {shown(tracking_uri())}: "
            f"{cause(error)}. Look whether its artifacts are shown there; where transfers are presigned, this machine "
            "must reach S3 as well."
        ) from error
    return str(found)


def become_server(directory: str, host: str, port: int) -> NoReturn:
    """Replace this process by MLflow's scoring server, so that it gets signals itself. Raises: OSError if it cannot."""
    command, environment = scoring_server.get_cmd(directory, port=port, host=host, nworkers=1)
    # The model is here: what answers anybody's requests need not know the login.
    for variable in LOGIN:
        environment.pop(variable, None)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", *shlex.split(command)], environment)


def main(words: Sequence[str] | None = None) -> int:
    """Serve by the command line `words`, by default this process's; return 1 when that fails, else never.

    Raises: SystemExit with status 2 for arguments that are not allowed.
    """
    options = arguments().parse_args(words)
    try:
        client = connect()
        with patience():
            version = find(client, options.model)
        with patience(retries=3, seconds=60):
            directory = download(version)
    except ProblemError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    print(f"Serving version {version.version} of {version.name} on http://{options.host}:{options.port}/invocations")
    become_server(directory, options.host, options.port)


if __name__ == "__main__":
    sys.exit(main())
