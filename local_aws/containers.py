"""Ties moto's ECR and ECS to real containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from docker import DockerClient
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ecr.models import ECRBackend, Repository
from moto.ecr.responses import ECRResponse

from local_aws import ecs
from local_aws.credentials import TaskCredentials
from local_aws.networks import Networks
from local_aws.patching import Patcher
from local_aws.registry import LOGIN_LIFETIME, Registry
from local_aws.scaling import Scaling
from local_aws.services import Services
from local_aws.state import Settings, StateDir
from local_aws.tasks import Run, Tasks


@dataclass(frozen=True)
class Containers:
    """Everything behind ECR and ECS that really runs."""

    registry: Registry
    tasks: Tasks
    services: Services
    credentials: TaskCredentials
    scaling: Scaling

    @classmethod
    def make(cls, client: DockerClient, state: StateDir, settings: Settings, networks: Networks) -> Containers:
        registry = Registry(client, state, settings, networks)
        tasks = Tasks(client, state, settings, networks, registry)

        def find(gateway: str, address: str) -> Run | None:
            network = networks.find(gateway)
            return tasks.at(network, address) if network else None

        services = Services(tasks)
        return cls(registry, tasks, services, TaskCredentials(find), Scaling(services, settings))

    def connect(self, settings: Settings, patch: Patcher) -> None:
        """Install all hooks. Call once, after moto is imported and before the first request."""
        _registry(self.registry, settings, patch)
        ecs.connect(self.tasks, self.services, patch)

    def forget_all(self) -> None:
        self.services.forget_all()
        self.tasks.forget_all()
        self.registry.forget()
        self.credentials.reset()
        self.scaling.forget_all()

    def summary(self) -> dict[str, Any]:
        return {
            "registry": self.registry.summary(),
            "tasks": self.tasks.summary(),
            "services": self.services.summary(),
        }

    def problems(self) -> dict[str, str]:
        own = {"registry": self.registry.problem} if self.registry.problem else {}
        return {**own, **self.services.problems}


def _registry(registry: Registry, settings: Settings, patch: Patcher) -> None:
    create, delete, delete_images = (
        ECRBackend.create_repository,
        ECRBackend.delete_repository,
        ECRBackend.batch_delete_image,
    )

    def create_repository(self: ECRBackend, repository_name: str, *args: Any, **kwargs: Any) -> Repository:
        repository = create(self, repository_name, *args, **kwargs)
        if self.region_name == settings.region:  # images of other regions are kept nowhere
            repository.uri = f"{registry.host}/{repository_name}"
            registry.prepare()
        return repository

    def delete_repository(self: ECRBackend, *args: Any, **kwargs: Any) -> Repository:
        repository = delete(self, *args, **kwargs)
        registry.delete_images(repository.name, [image.image_digest for image in repository.images])
        return repository

    def batch_delete_image(self: ECRBackend, repository_name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        before = {i.image_digest for i in self._get_repository(repository_name).images}
        answer: dict[str, Any] = delete_images(self, repository_name, *args, **kwargs)
        after = {i.image_digest for i in self._get_repository(repository_name).images}
        registry.delete_images(repository_name, before - after)
        return answer

    def get_authorization_token(self: ECRResponse) -> ActionResult:
        """The login lives as long as the daemon; the time is ECR's, so that clients ask again as they do there."""
        data = {
            "authorizationToken": registry.authorization_token(),
            "expiresAt": utcnow() + LOGIN_LIFETIME,
            "proxyEndpoint": f"http://{registry.host}",
        }
        return ActionResult({"authorizationData": [data]})

    patch.setattr(ECRBackend, "create_repository", create_repository)
    patch.setattr(ECRBackend, "delete_repository", delete_repository)
    patch.setattr(ECRBackend, "batch_delete_image", batch_delete_image)
    patch.setattr(ECRResponse, "get_authorization_token", get_authorization_token)
