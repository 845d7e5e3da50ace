"""ECR, ECS and their autoscaling on the local AWS: needs Docker. One account for the file, in a state of its own."""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import docker
import docker.errors
import pytest
from botocore.exceptions import ClientError

from local_aws.engine import File, archive
from local_aws.networks import overlap, used_ranges

ROOT = Path(__file__).parents[3]


def local_aws(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "local_aws", "--state-dir", str(directory), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    return condition()


def free_cidr() -> str:
    used = used_ranges(docker.from_env())
    blocks = (ipaddress.IPv4Network(f"10.{number}.0.0/16") for number in range(100, 150))
    return str(next(block for block in blocks if overlap(block, used) is None))


@dataclass
class Account:
    """A running account with a repository that nothing was pushed to yet."""

    directory: Path
    env: dict[str, str]
    base: str
    ids: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            region_name=self.env["AWS_REGION"],
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            verify=self.env["AWS_CA_BUNDLE"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(proxies={}, retries={"max_attempts": 1}),
        )

    def login(self) -> dict[str, str]:
        token = self.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
        return {"username": user, "password": password}

    def build(self, reference: str, text: str) -> None:
        """An image that differs by a text, and serves it over HTTP on port 8080."""
        lines = [
            f"FROM {self.base}",
            f"RUN printf %s {shlex.quote(text)} >/text",
            "COPY serve /serve",
            "RUN mkdir -m 1777 /scratch",
        ]
        dockerfile = "\n".join([*lines, "STOPSIGNAL SIGTERM", "VOLUME /scratch", "USER 10001", 'CMD ["/serve"]', ""])
        files = [File("Dockerfile", dockerfile.encode()), File("serve", SERVER.encode(), 0o755)]
        built, _log = docker.from_env().images.build(
            fileobj=io.BytesIO(archive(files)), custom_context=True, tag=reference, rm=True, forcerm=True
        )
        self.ids.setdefault("images", set()).update({reference, built.id})

    def push(self, reference: str, login: dict[str, str] | None = None) -> str:
        """Push an image; returns the error, or nothing."""
        repository, _, tag = reference.rpartition(":")
        lines = docker.from_env().images.push(
            repository, tag=tag, auth_config=login or self.login(), stream=True, decode=True
        )
        return "".join(line.get("error", "") for line in lines)


SERVER = """#!/usr/bin/perl
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => $ENV{PORT} // 8080, Listen => 16, ReuseAddr => 1) or die "no port: $!";
open my $file, "<", "/text"; my $text = <$file>;
$| = 1; print "listening\\n";
$SIG{TERM} = sub { print "asked to end\\n"; exit 0 };
while (1) {
    my $client = $server->accept or next;
    my $request = <$client>;
    print $client "HTTP/1.0 200 OK\\r\\nContent-Length: " . length($text) . "\\r\\n\\r\\n$text";
    close $client;
}
"""


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    directory = tmp_path_factory.mktemp("containers")
    try:
        local_aws(directory, "start")
        words = shlex.split(local_aws(directory, "env"))
        env = dict(word.split("=", 1) for word in words if "=" in word)
        made = Account(directory, env, json.loads(local_aws(directory, "images"))["host"])
        made.client("ecr").create_repository(
            repositoryName="app",
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
        )
        yield made
        for image in made.ids.get("images", ()):
            try:
                docker.from_env().images.remove(image, force=True)
            except docker.errors.ImageNotFound:
                continue
    finally:
        local_aws(directory, "stop")


def repository(account: Account) -> str:
    found = account.client("ecr").describe_repositories(repositoryNames=["app"])["repositories"][0]
    return str(found["repositoryUri"])


def test_ecr_tells_what_was_pushed(account: Account) -> None:
    ecr, reference = account.client("ecr"), f"{repository(account)}:one"
    with pytest.raises(ClientError, match="ImageNotFoundException"):
        ecr.describe_images(repositoryName="app", imageIds=[{"imageTag": "one"}])
    account.build(reference, "first")
    assert account.push(reference) == ""
    pushed = docker.from_env().images.get(reference).attrs["RepoDigests"]
    told = ecr.describe_images(repositoryName="app")["imageDetails"]
    assert [(image["imageTags"], f"{repository(account)}@{image['imageDigest']}") for image in told] == [
        (["one"], pushed[0])
    ]
    assert told[0]["imageScanStatus"]["status"] == "COMPLETE"
    manifest = json.loads(
        ecr.batch_get_image(repositoryName="app", imageIds=[{"imageTag": "one"}])["images"][0]["imageManifest"]
    )
    assert told[0]["imageSizeInBytes"] == sum(layer["size"] for layer in manifest["layers"])


def test_an_immutable_tag_keeps_its_image(account: Account) -> None:
    reference = f"{repository(account)}:one"
    assert account.push(reference) == ""  # the same image again
    account.build(reference, "other")
    assert "cannot be overwritten because the tag is immutable" in account.push(reference)


@pytest.mark.parametrize(
    ("name", "login", "error"),
    [
        ("unknown", None, "The repository with name 'unknown' does not exist"),
        ("app", {"username": "AWS", "password": "wrong"}, "authentication required"),
    ],
)
def test_a_push_needs_a_repository_and_a_login(
    account: Account, name: str, login: dict[str, str] | None, error: str
) -> None:
    reference = f"{repository(account).removesuffix('app')}{name}:two"
    account.build(reference, "second")
    assert error in account.push(reference, login)


def test_a_deleted_tag_cannot_be_pulled(account: Account) -> None:
    ecr, uri = account.client("ecr"), repository(account)
    account.build(f"{uri}:gone", "gone")
    assert account.push(f"{uri}:gone") == ""
    client = docker.from_env()
    client.api.pull(uri, "gone", auth_config=account.login())
    ecr.batch_delete_image(repositoryName="app", imageIds=[{"imageTag": "gone"}])
    with pytest.raises(docker.errors.NotFound):
        client.images.pull(uri, tag="gone", auth_config=account.login())
