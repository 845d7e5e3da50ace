"""Ties moto's EC2 and RDS to the containers: what the API changes happens to them, what it reports is true of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import moto.ec2.models.elastic_ip_addresses as eip_module
import moto.ec2.models.elastic_network_interfaces as eni_module
from moto.core.responses import ActionResult
from moto.core.types import Base64EncodedString
from moto.core.utils import utcnow
from moto.ec2.exceptions import EC2ClientError, InvalidKeyPairNameError
from moto.ec2.models import EC2Backend
from moto.ec2.models.elastic_ip_addresses import ElasticAddress
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instances import Instance, InstanceState, Reservation
from moto.ec2.responses import EC2Response
from moto.rds.exceptions import RDSClientError
from moto.rds.models import DBInstance, RDSBackend
from moto.rds.responses import RDSResponse

from local_aws.databases import Databases
from local_aws.instances import Instances, public_interface
from local_aws.networks import CidrOverlapError, ContainerNetwork, Networks
from local_aws.patching import Patcher
from local_aws.state import INTERNAL_NAME

SETTLE_SECONDS = 8.0  # a description waits so long for what is under way: waiters then poll once, not every 15 or 30 s
FINISH_SECONDS = 60.0  # an operation on something that is still changing waits so long


@dataclass(frozen=True)
class Cloud:
    """The parts that really run."""

    networks: Networks
    instances: Instances
    databases: Databases


def connect(cloud: Cloud, patch: Patcher) -> None:
    """Install all hooks. Call once, after moto is imported and before the first request."""
    _instances(cloud, patch)
    _addresses(cloud, patch)
    _databases(cloud, patch)


def _network(cloud: Cloud, backend: Any, subnet_id: str | None, zone: str | None) -> ContainerNetwork:
    """The container network for an instance in a subnet, or in the default VPC."""
    if subnet_id:
        subnet = backend.get_subnet(subnet_id)
    else:
        subnets = backend.get_default_subnets()
        if not subnets:
            raise EC2ClientError("VPCIdNotSpecified", "No default VPC for this user.")
        subnet = subnets.get(zone) or next(iter(subnets.values()))
    vpc = backend.get_vpc(subnet.vpc_id)
    try:
        return cloud.networks.for_vpc(vpc.id, vpc.cidr_block)
    except CidrOverlapError as error:
        raise EC2ClientError("InvalidVpc.Range", str(error)) from error


def _instances(cloud: Cloud, patch: Patcher) -> None:
    run, describe = EC2Backend.run_instances, EC2Backend.describe_instances
    describe_ids, status = EC2Backend.get_reservations_by_instance_ids, EC2Backend.describe_instance_status
    start, stop, terminate = Instance.start, Instance.stop, Instance.terminate
    reboot, delete_vpc = Instance.reboot, EC2Backend.delete_vpc

    @functools.wraps(run)
    def run_instances(
        self: Any, image_id: str, count: int, user_data: Any, security_group_names: list[str], **kwargs: Any
    ) -> Reservation:
        key_name = kwargs.get("key_name")
        if key_name and key_name not in self.key_pairs:
            raise InvalidKeyPairNameError(key_name)
        interfaces = kwargs.get("nics") or []
        subnet_id = kwargs.get("subnet_id") or next((n["SubnetId"] for n in interfaces if "SubnetId" in n), None)
        network = _network(cloud, self, subnet_id, kwargs.get("placement"))
        reservation = run(self, image_id, count, user_data, security_group_names, **kwargs)
        key = self.key_pairs[key_name].public_key if key_name else None
        for instance in reservation.instances:
            _delete_interfaces_on_termination(instance, interfaces)
            cloud.instances.launch(instance, key, network)
        return reservation

    def describe_instances(self: Any, filters: Any = None) -> list[Reservation]:
        # Only for what is described: AWS has no reason to wait for another instance that boots meanwhile.
        selected: list[Reservation] = describe(self, filters)
        cloud.instances.settle([i.id for r in selected for i in r.instances], SETTLE_SECONDS)
        found: list[Reservation] = describe(self, filters)
        return found

    def get_reservations_by_instance_ids(self: Any, instance_ids: list[str], filters: Any = None) -> list[Reservation]:
        cloud.instances.settle(cloud.instances.seen(instance_ids), SETTLE_SECONDS)
        found: list[Reservation] = describe_ids(self, instance_ids, filters)
        return found

    def describe_instance_status(
        self: Any, instance_ids: list[str], include_all_instances: bool, filters: Any
    ) -> list[Instance]:
        # Whoever includes instances in any state waits for none.
        if not include_all_instances:
            cloud.instances.settle_all(SETTLE_SECONDS)
        found: list[Instance] = status(self, instance_ids, include_all_instances, filters)
        return found

    def start_instance(self: Instance) -> InstanceState:
        cloud.instances.settle([self.id], FINISH_SECONDS)
        if self.state == "running":
            return InstanceState("running", 16)
        if self.state != "stopped":
            raise EC2ClientError(
                "IncorrectInstanceState", f"The instance '{self.id}' is not in a state from which it can be started."
            )
        previous = start(self)
        cloud.instances.start(self)
        return previous

    def stop_instance(self: Instance) -> InstanceState:
        cloud.instances.settle([self.id], FINISH_SECONDS)
        if self.state == "stopped":
            return InstanceState("stopped", 80)
        if self.state != "running":
            raise EC2ClientError(
                "IncorrectInstanceState", f"The instance '{self.id}' is not in a state from which it can be stopped."
            )
        previous = stop(self)
        cloud.instances.stop(self)
        return previous

    def terminate_instance(self: Instance) -> InstanceState:
        if self.state in ("shutting-down", "terminated"):
            return InstanceState(self.state, self.state_code)
        for address in [a for a in self.ec2_backend.addresses if a.instance is self]:
            self.ec2_backend.disassociate_address(association_id=address.association_id)
        previous = terminate(self)
        cloud.instances.terminate(self)
        return previous

    def reboot_instance(self: Instance) -> None:
        cloud.instances.settle([self.id], FINISH_SECONDS)
        if self.state != "running":
            raise EC2ClientError(
                "IncorrectInstanceState", f"The instance '{self.id}' is not in a state from which it can be rebooted."
            )
        reboot(self)
        cloud.instances.reboot(self)

    def delete_vpc_and_network(self: Any, vpc_id: str) -> Any:
        vpc = delete_vpc(self, vpc_id)
        cloud.instances.settle_all(FINISH_SECONDS)  # a terminated instance's container may still be in the network
        cloud.networks.drop_vpc(vpc_id)
        return vpc

    def get_console_output(self: Any) -> ActionResult:
        instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
        text = Base64EncodedString.from_raw_string(cloud.instances.console(instance))
        return ActionResult({"InstanceId": instance.id, "Timestamp": utcnow(), "Output": text})

    patch.setattr(EC2Backend, "run_instances", run_instances)
    patch.setattr(EC2Backend, "describe_instances", describe_instances)
    patch.setattr(EC2Backend, "get_reservations_by_instance_ids", get_reservations_by_instance_ids)
    patch.setattr(EC2Backend, "describe_instance_status", describe_instance_status)
    patch.setattr(EC2Backend, "delete_vpc", delete_vpc_and_network)
    patch.setattr(EC2Response, "get_console_output", get_console_output)
    patch.setattr(Instance, "start", start_instance)
    patch.setattr(Instance, "stop", stop_instance)
    patch.setattr(Instance, "terminate", terminate_instance)
    patch.setattr(Instance, "reboot", reboot_instance)


def _delete_interfaces_on_termination(instance: Instance, specification: Iterable[dict[str, Any]]) -> None:
    """EC2 deletes an interface that it made at launch with its instance, unless told otherwise; moto keeps it.

    Source: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceNetworkInterfaceSpecification.html
    """
    kept = {
        int(nic["DeviceIndex"])
        for nic in specification
        if nic.get("NetworkInterfaceId") or nic.get("DeleteOnTermination") in (False, "false")
    }
    for index, interface in instance.nics.items():
        interface.delete_on_termination = index not in kept


def _addresses(cloud: Cloud, patch: Patcher) -> None:
    associate, release = EC2Backend.associate_address, EC2Backend.release_address
    allocate = EC2Backend.allocate_address

    def new_address() -> str:
        try:
            return cloud.networks.addresses.allocate()
        except LookupError as error:
            raise EC2ClientError("InsufficientAddressCapacity", str(error)) from error

    def elastic(interface: NetworkInterface) -> ElasticAddress | None:
        return next((a for a in interface.ec2_backend.addresses if a.eni is interface), None)

    def sync(interface: NetworkInterface | None) -> None:
        instance = interface.instance if interface else None
        if instance is not None and public_interface(instance) is interface:
            cloud.instances.sync_public_address(instance)

    def check_auto_public_ip(self: NetworkInterface) -> None:
        """An Elastic IP stays over stop and start; an automatic address is new each time."""
        address = elastic(self)
        if address is not None:
            self.public_ip = address.public_ip
        elif self.public_ip_auto_assign and str(self.public_ip_auto_assign).lower() == "true":
            self.public_ip = self.public_ip or new_address()

    def stop_interface(self: NetworkInterface) -> None:
        if elastic(self) is None and self.public_ip:
            cloud.networks.addresses.release(self.public_ip)
            self.public_ip = None

    def allocate_address(self: Any, domain: str, address: str | None = None, tags: Any = None) -> ElasticAddress:
        return allocate(self, domain or "vpc", address=address, tags=tags)  # EC2-Classic is gone: vpc is the default

    def associate_address(self: Any, instance: Any = None, eni: Any = None, **kwargs: Any) -> ElasticAddress:
        target = eni or (public_interface(instance) if instance else None)
        if target is None:
            raise EC2ClientError("InvalidInstanceID", "The instance has no network interface.")
        owner = target.instance
        if owner is not None and owner.state not in ("pending", "running", "stopping", "stopped"):
            raise EC2ClientError(
                "IncorrectInstanceState", f"The instance '{owner.id}' is not in a valid state for this operation."
            )
        found = self.describe_addresses(
            [kwargs["allocation_id"]] if kwargs.get("allocation_id") else None,
            [kwargs["address"]] if kwargs.get("address") else None,
        )
        before = found[0].eni if found else None
        automatic = target.public_ip if elastic(target) is None else None
        displaced = [a for a in self.addresses if a.eni is target and a not in found]
        result = associate(self, instance=instance or owner, eni=eni, **kwargs)
        for address in displaced:
            address.eni = address.instance = address.association_id = None
        if automatic:
            cloud.networks.addresses.release(automatic)
        if before is not None and before is not target:
            before.public_ip = None
            before.check_auto_public_ip()
            sync(before)
        sync(target)
        return result

    def disassociate_address(self: Any, address: str | None = None, association_id: str | None = None) -> None:
        found = self.address_by_ip([address]) if address else self.address_by_association([association_id])
        interface = found[0].eni
        found[0].eni = found[0].instance = found[0].association_id = None
        if interface is not None:
            interface.public_ip = None
            if interface.instance is not None and interface.instance.state == "running":
                interface.check_auto_public_ip()
            sync(interface)

    def release_address(self: Any, address: str | None = None, allocation_id: str | None = None) -> None:
        found = self.address_by_ip([address]) if address else self.address_by_allocation([allocation_id])
        if found[0].association_id:
            raise EC2ClientError("InvalidIPAddress.InUse", f"Address {found[0].public_ip} is in use.")
        released = found[0].public_ip
        release(self, address=address, allocation_id=allocation_id)
        cloud.networks.addresses.release(released)

    def public_dns_name(self: Instance) -> str:
        return _dns_name(self.public_ip)

    association = vars(NetworkInterface)["association"].fget

    def association_without_name(self: NetworkInterface) -> dict[str, Any]:
        return {**association(self), "publicDnsName": _dns_name(self.public_ip)} if self.public_ip else {}

    patch.setattr(eip_module, "random_ip", new_address)
    patch.setattr(eni_module, "random_public_ip", new_address)
    patch.setattr(NetworkInterface, "check_auto_public_ip", check_auto_public_ip)
    patch.setattr(NetworkInterface, "stop", stop_interface)
    patch.setattr(NetworkInterface, "association", property(association_without_name))
    patch.setattr(Instance, "public_dns_name", property(public_dns_name))
    patch.setattr(EC2Backend, "allocate_address", allocate_address)
    patch.setattr(EC2Backend, "associate_address", associate_address)
    patch.setattr(EC2Backend, "disassociate_address", disassociate_address)
    patch.setattr(EC2Backend, "release_address", release_address)


def _dns_name(address: str | None) -> str:
    """The public DNS name of an address, empty without one.

    Not under amazonaws.com, which would lead out of this machine: `.internal` resolves nowhere. Never empty beside an
    address, since amazon.aws takes an instance without a public name for one without a public address.
    """
    return f"ec2-{address.replace('.', '-')}.{INTERNAL_NAME}" if address else ""


def _databases(cloud: Cloud, patch: Patcher) -> None:
    create, modify, delete = RDSBackend.create_db_instance, RDSBackend.modify_db_instance, RDSBackend.delete_db_instance
    stop, start, reboot = RDSBackend.stop_db_instance, RDSBackend.start_db_instance, RDSResponse.reboot_db_instance
    parameters = RDSBackend.modify_db_parameter_group
    endpoint = vars(DBInstance)["endpoint"].fget
    known = cloud.databases

    def create_db_instance(self: Any, db_kwargs: Any) -> DBInstance:
        database = create(self, db_kwargs)
        if database.engine != "postgres" or database.db_cluster_identifier:
            return database  # no other engine really runs
        try:
            network = known.network_of(database)
        except CidrOverlapError as error:
            self.databases.pop(database.db_instance_identifier, None)
            raise RDSClientError("InvalidVPCNetworkStateFault", str(error)) from error
        known.create(database, _password(database), network)
        return database

    def modify_db_instance(self: Any, db_instance_identifier: str, db_kwargs: Any) -> DBInstance:
        database = modify(self, db_instance_identifier, db_kwargs)
        if database in known.known():
            if db_kwargs.get("master_user_password"):
                known.change_password(database, str(database._master_user_password))
            if db_kwargs.get("db_parameter_group_name"):
                known.apply_parameters(database)
        return database

    def modify_db_parameter_group(self: Any, db_parameter_group_name: str, db_parameter_group_parameters: Any) -> Any:
        group = parameters(self, db_parameter_group_name, db_parameter_group_parameters)
        for database in known.known():
            if group in database.db_parameter_groups():
                known.apply_parameters(database)
        return group

    def delete_db_instance(self: Any, db_instance_identifier: str, *args: Any, **kwargs: Any) -> DBInstance:
        database = delete(self, db_instance_identifier, *args, **kwargs)
        if database in known.known():
            known.delete(database)
        return database

    def reboot_db_instance(self: RDSResponse) -> ActionResult:
        known.settle(FINISH_SECONDS)
        failover = str(self.params.get("ForceFailover")).lower() == "true"
        database = self.backend.describe_db_instances(self.params["DBInstanceIdentifier"])[0]
        if failover and not database.multi_az:
            raise RDSClientError(
                "InvalidParameterCombination", "Cannot force a failover of an instance that is not Multi-AZ."
            )
        result = reboot(self)
        if database in known.known():
            (known.fail_over if failover else known.reboot)(database)
        return result

    def following(
        original: Callable[..., DBInstance], action: Callable[[DBInstance], None]
    ) -> Callable[..., DBInstance]:
        """An operation of moto, then the same on the container."""

        @functools.wraps(original)
        def operation(self: Any, *args: Any, **kwargs: Any) -> DBInstance:
            known.settle(FINISH_SECONDS)
            database = original(self, *args, **kwargs)
            if database in known.known():
                action(database)
            return database

        return operation

    def endpoint_when_there(self: DBInstance) -> dict[str, Any] | None:
        """RDS reports no endpoint while an instance is being created."""
        return None if self.status == "creating" else endpoint(self)

    patch.setattr(RDSBackend, "create_db_instance", create_db_instance)
    patch.setattr(RDSBackend, "modify_db_instance", modify_db_instance)
    patch.setattr(RDSBackend, "modify_db_parameter_group", modify_db_parameter_group)
    patch.setattr(RDSBackend, "delete_db_instance", delete_db_instance)
    patch.setattr(RDSBackend, "stop_db_instance", following(stop, known.stop))
    patch.setattr(RDSBackend, "start_db_instance", following(start, known.start))
    patch.setattr(RDSResponse, "reboot_db_instance", reboot_db_instance)
    patch.setattr(DBInstance, "endpoint", property(endpoint_when_there))
    _settled_descriptions(cloud, patch)


def _settled_descriptions(cloud: Cloud, patch: Patcher) -> None:
    """DescribeDBInstances waits a little for what is under way; moto's own look-ups of a database do not."""
    describe = RDSResponse.describe_db_instances

    def describe_db_instances(self: RDSResponse) -> ActionResult:
        cloud.databases.settle(SETTLE_SECONDS)
        return describe(self)

    patch.setattr(RDSResponse, "describe_db_instances", describe_db_instances)


def _password(database: DBInstance) -> str:
    """The master password: the one that was given, or the one in the secret that RDS manages."""
    if database.manage_master_user_password:
        secret = database.backend.secretsmanager.get_secret_value(database.master_user_secret.secret_arn, "", "")
        return str(json.loads(secret["SecretString"])["password"])
    return str(database._master_user_password)
