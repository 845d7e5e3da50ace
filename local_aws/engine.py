"""The container engine: connecting to it, handing over files, and removing what a state directory left behind."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import requests
from docker import DockerClient
from docker.models.containers import Container

from local_aws.errors import LocalAwsError
from local_aws.state import StateDir

PULLED = "pulled.json"
REMOVALS = 3  # how often a container is asked to go


@dataclass(frozen=True)
class File:
    """A file to put into a container: absolute path, content, mode, owner and group by number."""

    path: str
    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    is_directory: bool = False


def connect() -> DockerClient:
    """A client of the engine that DOCKER_HOST or the default socket names.

    Raises LocalAwsError: no engine answers, or its socket may not be used.
    """
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise LocalAwsError(
            f"No container engine answers ({error}): start Docker, or point DOCKER_HOST at an engine that you may use."
        ) from error
    return client


def archive(files: list[File]) -> bytes:
    """A tar archive of the files, for `put_archive("/", …)` and build contexts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.type = tarfile.DIRTYPE if file.is_directory else tarfile.REGTYPE
            entry.size, entry.mode, entry.mtime = len(file.content), file.mode, int(time.time())
            entry.uid, entry.gid = file.uid, file.gid
            tar.addfile(entry, io.BytesIO(file.content))
    return buffer.getvalue()


def put_files(container: Container, files: list[File]) -> None:
    """Copy files into a container, running or not; directories of the paths must exist or be listed."""
    container.put_archive("/", archive(files))


def container_log(container: Container, lines: int = 400) -> str:
    """The last lines that a container wrote."""
    output = container.logs(tail=lines, stream=False)
    return (output if isinstance(output, bytes) else b"".join(output)).decode(errors="replace")


def remove_container(container: Container) -> None:
    """Remove a container with its anonymous volumes; one that is gone or going is fine."""
    for attempt in range(1, REMOVALS + 1):
        try:
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code == 409 and "removal" in str(error):
                return
            # On a busy machine the engine gives up waiting for the end of what it has killed.
            if "exit event" not in str(error) or attempt == REMOVALS:
                raise
        else:
            return


def remove_leftovers(client: DockerClient, state: StateDir) -> int:
    """Remove every container and network of this state directory and of no other; returns how many."""
    filters: dict[str, str | list[str] | bool] = {"label": [f"{key}={value}" for key, value in state.labels.items()]}
    containers = client.containers.list(all=True, filters=filters, ignore_removed=True)
    for container in containers:
        remove_container(container)
    for volume in client.volumes.list(filters=filters):
        volume.remove(force=True)
    remove_pulled(client, state)
    networks = client.networks.list(filters=filters)
    for network in networks:
        try:
            network.reload()
            for attached in network.containers:
                network.disconnect(attached, force=True)
            network.remove()
        except docker.errors.NotFound:
            continue
    return len(containers) + len(networks)


def remember_pulled(state: StateDir, reference: str) -> None:
    """Note an image that is on this machine only because a task needed it."""
    known = state.read_json(PULLED).get("images", [])
    state.write(PULLED, json.dumps({"images": sorted({*known, reference})}))


def remove_pulled(client: DockerClient, state: StateDir) -> None:
    """Remove the images that tasks brought; one that something else uses stays."""
    for reference in state.read_json(PULLED).get("images", []):
        with contextlib.suppress(docker.errors.APIError):
            client.images.remove(reference)
    (state.path / PULLED).unlink(missing_ok=True)


def remove_abandoned(client: DockerClient, own: StateDir) -> int:
    """Remove what accounts of other state directories left whose daemon lives no more; returns how many things.

    Their networks would keep address ranges from this account for ever. A daemon holds its lock for its whole life, and
    nothing of an account exists without one but leftovers. What cannot be looked at counts as living.
    """
    filters: dict[str, str | list[str] | bool] = {"label": "local_aws=1"}
    networks = [network.attrs.get("Labels") or {} for network in client.networks.list(filters=filters)]
    containers = client.containers.list(all=True, filters=filters, ignore_removed=True)
    labels = [*networks, *(container.labels for container in containers)]
    paths = {Path(label["local_aws.state"]) for label in labels if "local_aws.state" in label} - {own.path}
    removed = 0
    for path in sorted(paths):
        other = StateDir(path)
        try:
            abandoned = not other.daemon_runs()
        except OSError:
            continue
        if abandoned:
            removed += remove_leftovers(client, other)
    return removed
