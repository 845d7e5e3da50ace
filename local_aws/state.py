"""The state directory: which files it holds, who owns the account, and what the daemon was started with."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

DEFAULT_STATE_DIR = Path(".mlflow_aws/local_aws")
DEFAULT_REGION = "eu-central-1"
ACCOUNT_ID = "123456789012"  # moto's account; its access keys encode it
INTERNAL_NAME = "aws.internal"


@dataclass(frozen=True)
class Settings:
    """What a daemon is started with; handed over as JSON.

    port: HTTPS port of the API, the same on every address.
    http_port, metadata_port: plain HTTP API, instance metadata.
    host_image, database_image, base_image: tags of these images, and of the one that they were made of.
    registry_port: where the container registry answers, on loopback.
    ca_bundle: what apt trusts while an image is built.
    """

    port: int
    http_port: int
    metadata_port: int
    region: str
    host_image: str
    database_image: str
    base_image: str
    zones: list[str] = field(default_factory=list)
    registry_port: int = 0
    ca_bundle: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return cls(**json.loads(text))


class StateDir:
    """Paths and small files of one local AWS account.

    Whether a daemon runs is told by a lock that it holds, never by a pid file: the kernel drops the lock of a
    killed process, and a pid that another process got since cannot be mistaken for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)

    @property
    def key(self) -> str:
        """Eight hex digits that tell this state directory from others in names of containers and networks."""
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:8]

    @property
    def prefix(self) -> str:
        return f"local-aws-{self.key}-"

    @property
    def labels(self) -> dict[str, str]:
        return {"local_aws": "1", "local_aws.state": str(self.path)}

    @property
    def log(self) -> Path:
        return self.path / "daemon.log"

    @property
    def env_file(self) -> Path:
        return self.path / "env"

    @property
    def ca_file(self) -> Path:
        return self.path / "ca.pem"

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Write a file so that a reader sees the old or the new text, never half of it."""
        target = self.path / name
        temporary = target.with_name(f".{name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as handle:
            handle.write(text)
        temporary.replace(target)
        return target

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file; empty when it is missing or was damaged."""
        try:
            data = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    @contextlib.contextmanager
    def _locked(self, name: str, blocking: bool) -> Iterator[IO[str] | None]:
        self.create()
        with (self.path / name).open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            yield handle

    def daemon_lock(self) -> contextlib.AbstractContextManager[IO[str] | None]:
        """Held by the daemon for its whole life; gives None when another one holds it."""
        return self._locked("daemon.lock", blocking=False)

    def command_lock(self) -> contextlib.AbstractContextManager[IO[str] | None]:
        """Serialises start and stop."""
        return self._locked("command.lock", blocking=True)

    def daemon_runs(self) -> bool:
        if not (self.path / "daemon.lock").exists():
            return False
        with self.daemon_lock() as handle:
            return handle is None

    def daemon(self) -> dict[str, Any]:
        """What the running daemon wrote about itself: pid, ports, region; empty when none runs."""
        return self.read_json("daemon.json") if self.daemon_runs() else {}

    def secret(self, name: str) -> str:
        """A random token kept in the state directory, made at first use."""
        target = self.path / name
        if not target.exists():
            self.write(name, secrets.token_hex(32))
        return target.read_text()

    def admin_keys(self) -> tuple[str, str]:
        """Access key of the account's administrator: the same one over restarts, so that `env` stays valid."""
        keys = self.read_json("admin.json")
        if {"id", "secret"} <= keys.keys():
            return keys["id"], keys["secret"]
        from moto.iam.models import AccessKey

        made = AccessKey("administrator", prefix="AKIA", account_id=ACCOUNT_ID)
        self.write("admin.json", json.dumps({"id": made.access_key_id, "secret": made.secret_access_key}))
        return made.access_key_id, made.secret_access_key
