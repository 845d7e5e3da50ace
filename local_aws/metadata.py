"""The instance metadata service, version 2 only: a session token is needed for every read.

An instance is known by the address that its request comes from, so no key is stored on a host. Answers follow
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html
"""

from __future__ import annotations

import datetime
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moto.ec2.models.instances import Instance
from moto.sts.models import AssumedRole, sts_backends
from moto.utilities.utils import get_partition
from werkzeug import Request, Response

from local_aws.instances import public_interface
from local_aws.server import LOCAL_ADDRESS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LONGEST_TOKEN_SECONDS = 21600
SESSION_SECONDS = 6 * 3600
RENEW_SECONDS = 15 * 60
TOKEN_HEADER, TTL_HEADER = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
ROOTS = ("latest", "2021-07-15")


@dataclass
class _Token:
    instance_id: str
    expires: float


class Metadata:
    """WSGI application.

    find: the instance behind (gateway address that was asked, address that asks), or None.
    """

    def __init__(self, find: Callable[[str, str], Instance | None]) -> None:
        self._find = find
        self._tokens: dict[str, _Token] = {}
        self._sessions: dict[tuple[str, str], AssumedRole] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        instance = self._find(str(environ[LOCAL_ADDRESS]), request.remote_addr or "")
        return self._answer(request, instance)(environ, start_response)

    def reset(self) -> None:
        with self._lock:
            self._tokens.clear()
            self._sessions.clear()

    def _answer(self, request: Request, instance: Instance | None) -> Response:
        if instance is None or instance.metadata_options.http_endpoint == "disabled":
            return Response("", 403)
        if request.path == "/latest/api/token":
            return self._issue(request, instance)
        if request.method not in ("GET", "HEAD"):
            return Response("", 405)
        if not self._valid(request.headers.get(TOKEN_HEADER, ""), instance):
            return Response("", 401)
        root, _, path = request.path.strip("/").partition("/")
        if root not in ROOTS:
            return Response("", 404)
        text = self._read(instance, path)
        if text is None:
            return Response("", 404)
        kind = "application/json" if text.startswith("{") else "text/plain"
        return Response(text, 200, content_type=kind)

    def _issue(self, request: Request, instance: Instance) -> Response:
        if request.method != "PUT":
            return Response("", 405)
        if "X-Forwarded-For" in request.headers:  # AWS refuses these, against open proxies
            return Response("", 403)
        ttl = request.headers.get(TTL_HEADER, "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= LONGEST_TOKEN_SECONDS:
            return Response("", 400)
        value, now = secrets.token_urlsafe(42), time.monotonic()
        with self._lock:
            self._tokens = {v: t for v, t in self._tokens.items() if t.expires > now}
            self._tokens[value] = _Token(instance.id, now + int(ttl))
        return Response(value, 200, headers={TTL_HEADER: ttl})

    def _valid(self, value: str, instance: Instance) -> bool:
        now = time.monotonic()
        with self._lock:
            return any(
                hmac.compare_digest(known.encode(), value.encode())
                and token.instance_id == instance.id
                and token.expires > now
                for known, token in self._tokens.items()
            )

    def _read(self, instance: Instance, path: str) -> str | None:
        if path == "dynamic/instance-identity/document":
            return json.dumps(self._document(instance), indent=2)
        if not (path == "meta-data" or path.startswith("meta-data/")):
            return None
        leaves = self._leaves(instance)
        name = path.removeprefix("meta-data").strip("/")
        if name in leaves:
            return leaves[name]()
        prefix = f"{name}/" if name else ""
        children = sorted({_child(leaf, prefix) for leaf in leaves if leaf.startswith(prefix)})
        return "\n".join(children) if children else None

    def _leaves(self, instance: Instance) -> dict[str, Callable[[], str]]:
        zone, region = str(instance.placement.zone), instance.region_name
        interface = public_interface(instance)
        leaves: dict[str, Callable[[], str]] = {
            "ami-id": lambda: instance.image_id,
            "hostname": lambda: instance.private_dns_name,
            "instance-id": lambda: instance.id,
            "instance-type": lambda: instance.instance_type,
            "local-hostname": lambda: instance.private_dns_name,
            "local-ipv4": lambda: str(instance.private_ip),
            "mac": lambda: str(interface.mac_address),
            "placement/availability-zone": lambda: zone,
            "placement/region": lambda: region,
            "security-groups": lambda: "\n".join(group.name for group in instance.security_groups),
            "services/domain": lambda: "amazonaws.com",
            "services/partition": lambda: get_partition(region),
        }
        if instance.public_ip:
            leaves["public-ipv4"] = lambda: str(instance.public_ip)
        profile = self._profile(instance)
        if profile is not None and profile.roles:
            role = profile.roles[0]
            leaves["iam/info"] = lambda: json.dumps(
                {
                    "Code": "Success",
                    "LastUpdated": _stamp(datetime.datetime.now(datetime.UTC)),
                    "InstanceProfileArn": profile.arn,
                    "InstanceProfileId": profile.id,
                },
                indent=2,
            )
            leaves[f"iam/security-credentials/{role.name}"] = lambda: self._credentials(instance, role.arn)
        return leaves

    @staticmethod
    def _profile(instance: Instance) -> Any:
        association = instance.ec2_backend.iam_instance_profile_associations.get(instance.id)
        return association.iam_instance_profile if association else None

    def _credentials(self, instance: Instance, role_arn: str) -> str:
        """Temporary keys of the instance's role; the same ones until a quarter of an hour before they expire."""
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)  # moto's times are naive UTC
        with self._lock:
            session = self._sessions.get((instance.id, role_arn))
            renew = now + datetime.timedelta(seconds=RENEW_SECONDS)
            if session is None or session.expiration.replace(tzinfo=None) < renew:
                backend = sts_backends[instance.owner_id][get_partition(instance.region_name)]
                session = backend.assume_role(
                    region_name=instance.region_name,
                    role_session_name=instance.id,
                    role_arn=role_arn,
                    policy="",
                    duration=SESSION_SECONDS,
                    external_id="",
                )
                self._sessions[instance.id, role_arn] = session
        return json.dumps(
            {
                "Code": "Success",
                "LastUpdated": _stamp(now),
                "Type": "AWS-HMAC",
                "AccessKeyId": session.access_key_id,
                "SecretAccessKey": session.secret_access_key,
                "Token": session.session_token,
                "Expiration": _stamp(session.expiration),
            },
            indent=2,
        )

    @staticmethod
    def _document(instance: Instance) -> dict[str, object]:
        return {
            "accountId": instance.owner_id,
            "architecture": instance.architecture,
            "availabilityZone": instance.placement.zone,
            "billingProducts": None,
            "devpayProductCodes": None,
            "marketplaceProductCodes": None,
            "imageId": instance.image_id,
            "instanceId": instance.id,
            "instanceType": instance.instance_type,
            "kernelId": None,
            "pendingTime": _stamp(instance.launch_time),
            "privateIp": instance.private_ip,
            "ramdiskId": None,
            "region": instance.region_name,
            "version": "2017-09-30",
        }


def _child(leaf: str, prefix: str) -> str:
    """The next path element below a prefix, with a slash when it is a directory; as AWS lists it."""
    head, slash, _rest = leaf.removeprefix(prefix).partition("/")
    return head + slash


def _stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
