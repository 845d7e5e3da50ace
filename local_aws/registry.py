"""ECR: one real container registry for the account, and in front of it the rules that ECR adds to a registry.

The registry asks for the login itself. The gate in front knows moto's repositories: it refuses a repository that does
not exist and a new image under an immutable tag, resolves tags, and tells moto what was pushed.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors
import requests
from docker import DockerClient
from docker.models.containers import Container
from docker.types import EndpointConfig
from moto.core.utils import utcnow
from moto.ecr.models import Image, Repository, ecr_backends
from werkzeug import Request, Response

from local_aws import images
from local_aws.engine import File, container_log, put_files, remove_container
from local_aws.errors import LocalAwsError
from local_aws.networks import Networks
from local_aws.server import LOOPBACK
from local_aws.state import ACCOUNT_ID, Settings, StateDir

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

LABEL = "local_aws.registry"
USER = "AWS"
PORT = 5000
START_SECONDS = 30.0
READY_SECONDS = 300.0  # the image may have to be built first
LOGIN_LIFETIME = datetime.timedelta(hours=12)
BLOCK = 1 << 20
BCRYPT_LETTERS = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
NAMED = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>blobs|manifests|tags)/(?P<reference>.+)")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}
LARGEST_MANIFEST = 4 << 20


class RegistryError(Exception):
    """The registry cannot be used; the text says why."""


def digest_of(manifest: bytes) -> str:
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def find_image(repository: Repository, reference: str) -> Image | None:
    """The image of a repository that a tag or a digest names."""
    return next((i for i in list(repository.images) if reference in (i.image_digest, *i.image_tags)), None)


def record_push(repository: Repository, reference: str, manifest: bytes, media_type: str) -> Image:
    """Enter a pushed image; a tag that pointed elsewhere moves, and its old image stays without it, as in ECR."""
    digest = digest_of(manifest)
    tag = None if reference == digest else reference
    for other in repository.images:
        if tag in other.image_tags and other.image_digest != digest:
            other.remove_tag(tag)
            other.image_tag = other.image_tags[-1] if other.image_tags else None
    image = find_image(repository, digest)
    if image is None:
        image = Image(repository.account_id, tag, manifest.decode(), repository.name, media_type, digest)
        if repository.image_scanning_configuration.get("scanOnPush"):
            image.last_scan = utcnow()
        repository.images.append(image)
    elif tag is not None:
        image.update_tag(tag)
    return image


class Registry:
    """Starts the registry's container when the first repository is made. Also the WSGI application in front of it."""

    def __init__(self, client: DockerClient, state: StateDir, settings: Settings, networks: Networks) -> None:
        self._client, self._state, self._settings, self._networks = client, state, settings, networks
        self.password = secrets.token_urlsafe(48)
        self.host = f"{LOOPBACK}:{settings.registry_port}"
        self.problem = ""
        self._lock = threading.RLock()
        self._starting: threading.Thread | None = None
        self._address: str | None = None
        self._uploads = threading.Lock()

    # the container

    def prepare(self) -> None:
        """Begin to start the registry, unless it runs or is starting."""
        with self._lock:
            if self._starting is None and self._address is None:
                self.problem = ""
                self._starting = threading.Thread(target=self._start, name="registry", daemon=True)
                self._starting.start()

    def address(self) -> str:
        """Where the registry listens. Waits until it does. Raises RegistryError."""
        self.prepare()
        starting = self._starting
        if starting is not None:
            starting.join(READY_SECONDS)
        if self._address is None:
            raise RegistryError(self.problem or f"the registry was not ready after {READY_SECONDS:.0f} s")
        return self._address

    def forget(self) -> None:
        """Remove the registry with everything in it."""
        with self._lock:
            starting = self._starting
        if starting is not None:
            starting.join(READY_SECONDS)
        with self._lock:
            container = self._container()
            if container is not None:
                remove_container(container)
            self._starting, self._address = None, None

    def summary(self) -> dict[str, str]:
        return {"host": self.host, "container": self._name if self._address else "", "problem": self.problem}

    @property
    def _name(self) -> str:
        return f"{self._state.prefix}registry"

    def _container(self) -> Container | None:
        try:
            return self._client.containers.get(self._name)
        except docker.errors.NotFound:
            return None

    def _start(self) -> None:
        try:
            self._address = self._run()
        except (RegistryError, LocalAwsError, docker.errors.DockerException, requests.RequestException) as error:
            log.exception("the registry did not start")
            self.problem = str(error)
        finally:
            self._starting = None

    def _run(self) -> str:
        bundle = Path(self._settings.ca_bundle) if self._settings.ca_bundle else None
        image = images.ensure_derived(self._client, "registry", self._settings.host_image, bundle, log.info)
        public = self._networks.public
        if public is None:
            raise RegistryError("there is no network for it")
        address = self._networks.addresses.allocate()
        endpoint = EndpointConfig(self._client.api.api_version, ipv4_address=address)
        container = self._client.containers.create(
            image,
            name=self._name,
            labels={**self._state.labels, LABEL: "1"},
            init=True,
            network=str(public.network.name),
            networking_config={str(public.network.name): endpoint},
        )
        salt = "".join(secrets.choice(BCRYPT_LETTERS) for _ in range(21)) + "."
        login = f"{self.password}\n{salt}\n".encode()
        put_files(container, [File("/etc/local-aws/registry-login", login, 0o600)])
        container.start()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if requests.get(f"http://{address}:{PORT}/v2/", timeout=2, proxies=_DIRECT).status_code == 401:
                    return address
            except requests.RequestException:
                pass
            container.reload()
            if container.status == "exited":
                raise RegistryError(f"its container ended: {container_log(container)[-500:]}")
            time.sleep(0.1)
        raise RegistryError(f"it did not answer within {START_SECONDS:.0f} s")

    # what moto asks for

    def authorization_token(self) -> str:
        return base64.b64encode(f"{USER}:{self.password}".encode()).decode()

    def delete_images(self, name: str, digests: Iterable[str]) -> None:
        """Remove manifests from the registry; what is not there is fine."""
        if self._address is None:
            return
        for digest in digests:
            url = f"http://{self._address}:{PORT}/v2/{name}/manifests/{digest}"
            requests.delete(url, auth=(USER, self.password), timeout=30, proxies=_DIRECT)

    # the gate

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        try:
            return self._answer(request)(environ, start_response)
        except (RegistryError, OSError, http.client.HTTPException) as error:
            log.warning("the registry: %s", error)
            return _refusal(503, "UNAVAILABLE", str(error))(environ, start_response)

    def _answer(self, request: Request) -> Response:
        found = NAMED.fullmatch(request.path)
        # who does not log in right is refused by the registry itself
        if found is None or not self._logged_in(request):
            return self._forward(request, request.path)
        name, kind, reference = found["name"], found["kind"], found["reference"]
        repository = ecr_backends[ACCOUNT_ID][self._settings.region].repositories.get(name)
        if repository is None:
            return _refusal(
                404,
                "NAME_UNKNOWN",
                f"The repository with name '{name}' does not exist in the registry with id '{ACCOUNT_ID}'",
            )
        if kind == "tags":
            tags = sorted(tag for image in repository.images for tag in image.image_tags)
            return Response(json.dumps({"name": name, "tags": tags}), content_type="application/json")
        if kind == "manifests" and request.method == "PUT":
            return self._push(request, repository, reference)
        if kind == "manifests" and request.method in ("GET", "HEAD"):
            image = find_image(repository, reference)
            if image is None:
                return _refusal(404, "MANIFEST_UNKNOWN", "Requested image not found")
            return self._forward(request, f"/v2/{name}/manifests/{image.image_digest}")
        if request.method == "DELETE" and kind == "manifests":
            return _refusal(405, "UNSUPPORTED", "The operation is unsupported: use BatchDeleteImage")
        return self._forward(request, request.path)

    def _logged_in(self, request: Request) -> bool:
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode(), f"Basic {self.authorization_token()}".encode())

    def _push(self, request: Request, repository: Repository, reference: str) -> Response:
        manifest = request.stream.read(LARGEST_MANIFEST + 1)
        with self._uploads:
            before = find_image(repository, reference)
            digest = digest_of(manifest)
            if before is not None and before.image_digest != digest and repository.is_tag_immutable():
                return _refusal(
                    400,
                    "TAG_INVALID",
                    f"The image tag '{reference}' already exists in the '{repository.name}' repository and cannot be "
                    "overwritten because the tag is immutable.",
                )
            # by its digest: the tag is moto's to know, so that deleting and moving tags is true here at once
            answer = self._forward(request, f"/v2/{repository.name}/manifests/{digest}", manifest)
            if answer.status_code == 201:
                record_push(repository, reference, manifest, request.headers.get("Content-Type", ""))
        return answer

    def _forward(self, request: Request, path: str, body: bytes | None = None) -> Response:
        """Pass a request on, in pieces: layers are large."""
        link = http.client.HTTPConnection(self.address(), PORT, timeout=600)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP | {"expect"}}
        data: bytes | Iterator[bytes] | None = body
        if body is not None:
            headers["Content-Length"] = str(len(body))
        elif request.method in ("POST", "PUT", "PATCH"):
            data = iter(lambda: request.stream.read(BLOCK), b"")
        query = request.query_string.decode()
        chunked = data is not None and not any(k.lower() == "content-length" for k in headers)
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        link.request(request.method, f"{path}?{query}" if query else path, data, headers, encode_chunked=chunked)
        answer = link.getresponse()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP]

        def pieces() -> Iterator[bytes]:
            try:
                while block := answer.read(BLOCK):
                    yield block
            finally:
                link.close()

        return Response(pieces(), answer.status, kept, direct_passthrough=True)


_DIRECT: dict[str, Any] = {"http": "", "https": ""}  # a proxy of the environment is for the outside


def _refusal(status: int, code: str, message: str) -> Response:
    """An error as registries tell it: https://distribution.github.io/distribution/spec/api/#errors"""
    body = json.dumps({"errors": [{"code": code, "message": message}]})
    return Response(body, status, content_type="application/json")
