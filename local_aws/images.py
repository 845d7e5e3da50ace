"""The images that everything runs from, built when they are absent or their recipe changed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import io
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import docker.errors
from docker import DockerClient

from local_aws.engine import File, archive
from local_aws.errors import LocalAwsError, UnavailableError

RECIPES = Path(__file__).parent / "recipes"
BASES = "local-aws-base:debian-"  # what debootstrap made, by suite
# Where a suite's base comes from, the first that can be had: a registry's image, or debootstrap.
SUITES = {
    "bookworm": ("debian:bookworm", f"{BASES}bookworm"),
    "trixie": ("debian:trixie", f"{BASES}trixie"),
    "jammy": ("ubuntu:22.04",),
    "noble": ("ubuntu:24.04",),
}
AUTO = ("ubuntu:24.04", f"{BASES}bookworm")
ANSWER_SECONDS = 15.0  # a registry that sends nothing for so long is taken as unreachable
LABEL = {"local_aws.image": "1"}
PROGRAMS = ("sbin", "local-aws")  # directories whose files are programs
CA_PATH = "/usr/local/lib/local-aws/build-ca.pem"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Images:
    """Tags of the images that instances and databases run from, and of the one that both were made of."""

    host: str
    database: str
    base: str


def recipe_files(name: str) -> list[File]:
    """Every file of a recipe, with its path inside the build context."""
    root = RECIPES / name
    return [
        File(str(path.relative_to(root)), path.read_bytes(), 0o755 if path.parent.name in PROGRAMS else 0o644)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]


def recipe_hash(name: str, base: str) -> str:
    """Twelve hex digits over a recipe's files and the base that it starts from."""
    digest = hashlib.sha256(base.encode())
    for file in recipe_files(name):
        digest.update(f"\0{file.path}\0{file.mode}\0".encode() + file.content)
    return digest.hexdigest()[:12]


def ensure(client: DockerClient, base: str, ca_bundle: Path | None, mirror: str | None, say: Say) -> Images:
    """Build what is missing.

    base: `auto` for Ubuntu 24.04 from the registry, else Debian 12 by debootstrap; a suite; or an image to start from.
    ca_bundle: certificates that apt trusts during the build only, for an intercepting proxy.
    mirror: Debian mirror for debootstrap; None leaves it to debootstrap.
    Raises UnavailableError when there is no base to be had; LocalAwsError.
    """
    with _only_builder():
        return _Builder(client, ca_bundle, mirror, say).ensure(base)


def ensure_derived(client: DockerClient, name: str, base: str, ca_bundle: Path | None, say: Say) -> str:
    """Build one more recipe on an image that is there, if it is missing; returns its tag. Raises LocalAwsError."""
    tag = f"local-aws-{name}:{recipe_hash(name, base)}"
    with _only_builder():
        builder = _Builder(client, ca_bundle, None, say)
        if not builder.present(tag):
            builder.build(name, tag, base)
    return tag


@contextlib.contextmanager
def _only_builder() -> Iterator[None]:
    """Images are shared by all state directories of this machine: one build at a time."""
    path = Path(tempfile.gettempdir()) / f"local-aws-images-{os.getuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class _Builder:
    def __init__(self, client: DockerClient, ca_bundle: Path | None, mirror: str | None, say: Say) -> None:
        self._client, self._ca_bundle, self._mirror, self._say = client, ca_bundle, mirror, say

    def ensure(self, base: str) -> Images:
        sources = AUTO if base == "auto" else SUITES.get(base, (base,))
        # what an earlier start settled on is kept, so that a registry that comes and goes changes nothing
        for source in sources:
            if self.present(source):
                return self._from_base(source)
        for source in sources:
            images = self._tags(source)
            if self.present(images.host) and self.present(images.database):
                return images
        return self._from_base(self._obtain(sources))

    @staticmethod
    def _tags(base: str) -> Images:
        return Images(
            f"local-aws-host:{recipe_hash('host', base)}", f"local-aws-database:{recipe_hash('database', base)}", base
        )

    def present(self, tag: str) -> bool:
        try:
            self._client.images.get(tag)
        except docker.errors.ImageNotFound:
            return False
        return True

    def _from_base(self, base: str) -> Images:
        images = self._tags(base)
        wanted = {"host": images.host, "database": images.database}
        missing = [(name, tag) for name, tag in wanted.items() if not self.present(tag)]
        if not missing:
            return images
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for job in [pool.submit(self.build, name, tag, base) for name, tag in missing]:
                job.result()
        return images

    def build(self, name: str, tag: str, base: str) -> None:
        started = time.monotonic()
        self._say(f"Building the {name} image from {base} …")
        files = recipe_files(name)
        if self._ca_bundle:
            files.append(File(f"rootfs{CA_PATH}", self._ca_bundle.read_bytes()))
        output: list[str] = []
        try:
            for line in self._client.api.build(
                fileobj=io.BytesIO(archive(files)),
                custom_context=True,
                tag=tag,
                buildargs={"BASE": base},
                labels=LABEL,
                rm=True,
                forcerm=True,
                decode=True,
            ):
                output.append(line.get("stream", ""))
                if "error" in line:
                    tail = "".join(output)[-2000:]
                    raise LocalAwsError(
                        f"Building the {name} image failed: {line['error']}. The last lines were:\n{tail}"
                    )
        except docker.errors.APIError as error:
            raise LocalAwsError(f"Building the {name} image failed: {error.explanation}") from error
        self._say(f"The {name} image is ready ({time.monotonic() - started:.0f} s).")

    def _obtain(self, sources: tuple[str, ...]) -> str:
        reasons = []
        for source in sources:
            if source.startswith(BASES):
                if error := self._debootstrap(source):
                    reasons.append(error)
                    continue
                return source
            self._say(f"Looking for {source} in the registry …")
            if error := self._pull(source):
                reasons.append(f"cannot pull {source}: {error.strip().splitlines()[0][:120]}")
                self._say(f"It cannot be had ({reasons[-1]}).")
                continue
            return source
        raise UnavailableError(
            f"There is no base for the images: {'; '.join(reasons)}. Give the engine access to a registry, or load an "
            "image with 'docker load' and name it with --host-image, or install debootstrap and run "
            "'python -m local_aws images' once as root."
        )

    def _pull(self, reference: str) -> str | None:
        """Pull an image; returns None when it is there, else why not. Gives up on a registry that says nothing."""
        events: queue.Queue[str | None] = queue.Queue()

        def work() -> None:
            repository, _, tag = reference.rpartition(":")
            try:
                name = repository or reference
                for event in self._client.api.pull(name, tag=tag or "latest", stream=True, decode=True):
                    if "error" in event:
                        events.put(f"error: {event['error']}")
                        return
                    events.put("progress")
                events.put(None)
            except docker.errors.APIError as error:
                events.put(f"error: {error.explanation}")

        threading.Thread(target=work, daemon=True).start()
        while True:
            try:
                event = events.get(timeout=ANSWER_SECONDS)
            except queue.Empty:
                return f"no answer from the registry within {ANSWER_SECONDS:.0f} s"
            if event is None:
                return None
            if event.startswith("error: "):
                return event.removeprefix("error: ")

    def _debootstrap(self, base: str) -> str | None:
        """Make a base with debootstrap; returns None when it is there, else why there is none."""
        suite = base.removeprefix(BASES)
        tool = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if os.geteuid() != 0 or tool is None:
            return f"cannot debootstrap {suite} " + ("without root" if tool else "because it is not installed")
        self._say(f"Making a base of Debian {suite} with debootstrap …")
        started = time.monotonic()
        for stale in Path(tempfile.gettempdir()).glob("local-aws-base-*"):
            _remove_tree(stale)  # of a build that was killed; we hold the builders' lock
        directory = Path(tempfile.mkdtemp(prefix="local-aws-base-"))
        try:
            command = [tool, "--variant=minbase", "--include=ca-certificates", suite, str(directory / "root")]
            done = subprocess.run(
                command + ([self._mirror] if self._mirror else []), capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise LocalAwsError(f"debootstrap failed: {(done.stderr or done.stdout)[-1000:]}")
            with subprocess.Popen(
                ["tar", "--numeric-owner", "-C", str(directory / "root"), "-c", "."], stdout=subprocess.PIPE
            ) as tar:
                if tar.stdout is None:
                    raise LocalAwsError("tar could not be started.")
                repository, _, tag = base.partition(":")
                self._client.api.import_image(_chunks(tar.stdout), repository=repository, tag=tag)
        finally:
            _remove_tree(directory)
        self._say(f"The base of Debian {suite} is ready ({time.monotonic() - started:.0f} s).")
        return None


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """A stream in pieces of 1 MiB; requests would take a pipe for an empty file."""
    while block := stream.read(1 << 20):
        yield block


def _remove_tree(path: Path) -> None:
    """Remove a root file system, but never what a killed build left mounted in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=False, capture_output=True)
