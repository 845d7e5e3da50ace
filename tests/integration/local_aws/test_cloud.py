"""The local AWS with everything that really runs: needs Docker. One account for the file, in a state of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import docker
import psycopg2
import pytest
from botocore.exceptions import ClientError
from running import RunningAccount, eventually, free_cidr, local_aws, said, variables

from local_aws.state import StateDir

PASSWORD = "p@ss/w:rd#100%&x"  # every character that a careless quoting or URL breaks on
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
BUCKET_POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": ["arn:aws:s3:::artifacts", "arn:aws:s3:::artifacts/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ],
}
SSH_OPTIONS = shlex.split(
    "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=9 -o BatchMode=yes"
)
IMDS = "http://169.254.169.254/latest"


@dataclass
class Account(RunningAccount):
    """A running account, with one instance that has an Elastic IP and a role, and one database."""

    key: Path
    cidr: str
    ids: dict[str, str]

    def instance(self) -> dict[str, Any]:
        found = self.client("ec2").describe_instances(InstanceIds=[self.ids["instance"]])
        return dict(found["Reservations"][0]["Instances"][0])

    def database_status(self) -> str:
        return str(self.client("rds").describe_db_instances()["DBInstances"][0]["DBInstanceStatus"])

    def ssh(self, command: str, check: bool = True) -> str:
        done = subprocess.run(
            ["ssh", "-i", str(self.key), *SSH_OPTIONS, f"ubuntu@{self.ids['address']}", command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def metadata(self, path: str) -> str:
        token = f"$(curl -sS -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' {IMDS}/api/token)"
        return self.ssh(f'curl -sS -f -H "X-aws-ec2-metadata-token: {token}" {IMDS}/{path}')

    def container(self, kind: str) -> Any:
        status = json.loads(local_aws(self.directory, "status"))
        return docker.from_env().containers.get(status[kind][0]["container"])

    def connect(self, password: str = PASSWORD, **arguments: str) -> Any:
        database = json.loads(local_aws(self.directory, "status"))["databases"][0]
        name, _, port = database["endpoint"].rpartition(":")
        given: dict[str, Any] = {
            "host": name,
            "hostaddr": database["private_address"],
            "port": port,
            "user": "master",
            "password": password,
            "dbname": "mlflow",
            "sslmode": "verify-full",
            "sslrootcert": self.env["LOCAL_AWS_CA_FILE"],
        }
        return psycopg2.connect(**{**given, **arguments})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("local_aws")
    try:
        yield made
    finally:
        local_aws(made, "stop")


@pytest.fixture(scope="module")
def account(directory: Path) -> Account:
    local_aws(directory, "start", "--zone", "local.example")
    key = directory / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    made = Account(directory, variables(directory), key, str(free_cidr(range(200, 250))), {})
    ec2, rds, iam, s3 = (made.client(name) for name in ("ec2", "rds", "iam", "s3"))
    vpc = ec2.create_vpc(CidrBlock=made.cidr)["Vpc"]["VpcId"]
    prefix = made.cidr.removesuffix("0.0/16")
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"{prefix}{n}.0/24", AvailabilityZone=f"eu-central-1{zone}")["Subnet"]
        for n, zone in ((1, "a"), (2, "b"))
    ]
    subnet_ids = [subnet["SubnetId"] for subnet in subnets]
    rds.create_db_subnet_group(DBSubnetGroupName="g", DBSubnetGroupDescription="g", SubnetIds=subnet_ids)
    rds.create_db_parameter_group(DBParameterGroupName="g", DBParameterGroupFamily="postgres16", Description="g")
    rds.modify_db_parameter_group(
        DBParameterGroupName="g",
        Parameters=[{"ParameterName": "rds.force_ssl", "ParameterValue": "1", "ApplyMethod": "immediate"}],
    )
    rds.create_db_instance(
        DBInstanceIdentifier="db",
        DBInstanceClass="db.t4g.micro",
        Engine="postgres",
        EngineVersion="16.4",
        AllocatedStorage=20,
        MasterUsername="master",
        MasterUserPassword=PASSWORD,
        DBName="mlflow",
        DBSubnetGroupName="g",
        DBParameterGroupName="g",
        Port=5433,
        DeletionProtection=True,
    )
    s3.create_bucket(Bucket="artifacts", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="artifacts", Key="allowed/a", Body=b"from outside")
    s3.put_bucket_policy(Bucket="artifacts", Policy=json.dumps(BUCKET_POLICY))
    iam.create_role(RoleName="server", AssumeRolePolicyDocument=json.dumps(TRUST))
    statement = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": "arn:aws:s3:::artifacts/allowed/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_role_policy(RoleName="server", PolicyName="p", PolicyDocument=policy)
    iam.create_instance_profile(InstanceProfileName="server")
    iam.add_role_to_instance_profile(InstanceProfileName="server", RoleName="server")
    ec2.import_key_pair(KeyName="k", PublicKeyMaterial=key.with_suffix(".pub").read_bytes())
    parameter = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    image = made.client("ssm").get_parameter(Name=parameter)["Parameter"]["Value"]
    run = ec2.run_instances(
        ImageId=image,
        InstanceType="t3.small",
        MinCount=1,
        MaxCount=1,
        KeyName="k",
        SubnetId=subnet_ids[0],
        IamInstanceProfile={"Name": "server"},
        MetadataOptions={"HttpTokens": "required"},
    )
    made.ids.update(vpc=vpc, image=image, subnet=subnet_ids[0], instance=run["Instances"][0]["InstanceId"])
    assert run["Instances"][0]["State"]["Name"] == "pending"
    address = ec2.allocate_address(Domain="vpc")
    ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=made.ids["instance"])
    made.ids["address"] = address["PublicIp"]
    assert eventually(lambda: made.instance()["State"]["Name"] == "running", 90)
    assert eventually(lambda: made.database_status() == "available", 90)
    return made


def test_a_second_start_is_a_no_op(account: Account) -> None:
    again = said(account.directory, "start")
    assert "runs already" in again.stderr
    assert again.stdout.strip() == account.env["AWS_ENDPOINT_URL"]


def test_an_instance_is_a_host_of_its_own(account: Account) -> None:
    instance = account.instance()
    assert instance["PublicIpAddress"] == account.ids["address"]
    assert account.ssh("hostname").strip() == "ip-" + instance["PrivateIpAddress"].replace(".", "-")
    assert instance["PrivateIpAddress"] in account.ssh("ip -4 -brief address")
    assert account.ssh("sudo systemctl is-system-running --wait", check=False).strip() == "running"
    assert not instance["PublicDnsName"].endswith("amazonaws.com")


def test_the_console_shows_the_host_key_that_ssh_meets(account: Account) -> None:
    console = account.client("ec2").get_console_output(InstanceId=account.ids["instance"])["Output"]
    shown = console.split("-----BEGIN SSH HOST KEY KEYS-----")[1].split("-----END SSH HOST KEY KEYS-----")[0]
    met = subprocess.run(
        ["ssh-keyscan", "-T", "10", "-t", "ed25519", account.ids["address"]], capture_output=True, text=True, check=True
    ).stdout.split()
    assert met[-1] in shown


def test_metadata_needs_a_token_and_no_port_of_the_host(account: Account) -> None:
    assert account.ssh(f"curl -sS -o /dev/null -w '%{{http_code}}' {IMDS}/meta-data/").strip() == "401"
    assert account.metadata("meta-data/instance-id") == account.ids["instance"]
    assert account.metadata("meta-data/public-ipv4") == account.ids["address"]
    assert account.ssh("sudo ss -Hltn 'sport = :80'") == ""


def test_the_roles_credentials_reach_s3_and_nothing_else(account: Account) -> None:
    keys = json.loads(account.metadata("meta-data/iam/security-credentials/server"))
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["Token"], "eu-central-1")
    s3 = session.client("s3", endpoint_url=account.env["AWS_ENDPOINT_URL"], verify=account.env["AWS_CA_BUNDLE"])
    local_aws(account.directory, "enforce", "on")
    try:
        assert s3.get_object(Bucket="artifacts", Key="allowed/a")["Body"].read() == b"from outside"
        for refused in (
            lambda: s3.put_object(Bucket="artifacts", Key="allowed/b", Body=b"x"),
            lambda: s3.get_object(Bucket="artifacts", Key="other/a"),
            s3.list_buckets,
        ):
            with pytest.raises(ClientError) as error:
                refused()
            assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert account.client("ec2").describe_vpcs()["Vpcs"]  # the administrator may still
    finally:
        local_aws(account.directory, "enforce", "off")


def test_the_bucket_policy_judges_the_real_transport(account: Account) -> None:
    ports = json.loads((account.directory / "ports.json").read_text())["ports"]
    get = {"Bucket": "artifacts", "Key": "allowed/a"}
    assert account.client("s3").get_object(**get)["Body"].read() == b"from outside"
    with pytest.raises(ClientError):
        account.client("s3", endpoint_url=f"http://127.0.0.1:{ports[1]}").get_object(**get)


def test_the_api_is_reachable_from_inside_with_the_authority(account: Account) -> None:
    authority = Path(account.env["LOCAL_AWS_CA_FILE"]).read_text()
    account.ssh(f"cat > ca.pem <<'EOF'\n{authority}EOF")
    url = account.env["MLFLOW_S3_ENDPOINT_URL"]
    assert account.ssh(f"curl -sS --cacert ca.pem -o /dev/null -w '%{{http_code}}' {url}/artifacts").strip() != "000"
    assert account.ssh(f"curl -sS -o /dev/null {url}/; echo $?").strip() == "60"


def test_nothing_listens_on_every_address(account: Account) -> None:
    ports = json.loads((account.directory / "ports.json").read_text())["ports"]
    listening = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {local.split(":")[0] for local, _, kind in listening if kind == "0A" and int(local[9:], 16) in ports}
    assert len(ours) == 3  # loopback, the VPC's gateway, the gateway of the public network
    assert "00000000" not in ours


def test_instances_cannot_command_the_account(account: Account) -> None:
    url = account.env["MLFLOW_S3_ENDPOINT_URL"]
    for path in ("moto-api/reset", "_local_aws/reset"):
        code = account.ssh(f"curl -sk -X POST -o /dev/null -w '%{{http_code}}' {url}/{path}").strip()
        assert code in ("403", "404")
    assert account.instance()["State"]["Name"] == "running"


def test_the_database_speaks_tls_only_under_its_own_name(account: Account) -> None:
    with contextlib.closing(account.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_user, current_database(), ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert cursor.fetchone() == ("master", "mlflow", True)
        cursor.execute("SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = 'master'")
        assert cursor.fetchone() == (False, True, True)
    for refused in ({"sslmode": "disable"}, {"password": "wrong"}):
        with pytest.raises(psycopg2.OperationalError):
            account.connect(**refused)


def test_the_databases_name_resolves_inside_the_vpc(account: Account) -> None:
    endpoint = account.client("rds").describe_db_instances()["DBInstances"][0]["Endpoint"]
    assert endpoint["Port"] == 5433
    assert account.ssh(f"getent hosts {endpoint['Address']}").split()[0].startswith(account.cidr[:7])


def test_no_container_shows_the_password(account: Account) -> None:
    container = account.container("databases")
    assert PASSWORD not in json.dumps(container.attrs)
    assert PASSWORD not in str(container.top())
    code, output = container.exec_run(["grep", "-rlF", PASSWORD, "/etc", "/var/lib/rds", "/proc/1/environ", "/tmp"])
    assert (code, output) == (1, b"")


def test_the_master_password_changes(account: Account) -> None:
    rds = account.client("rds")
    for password in ("an\\other'\"$one", PASSWORD):
        rds.modify_db_instance(DBInstanceIdentifier="db", MasterUserPassword=password, ApplyImmediately=True)
        rds.describe_db_instances()
        account.connect(password).close()


def test_tls_follows_the_parameter_group(account: Account) -> None:
    rds = account.client("rds")

    def plain_is_served() -> bool:
        with contextlib.suppress(psycopg2.OperationalError):
            account.connect(sslmode="disable").close()
            return True
        return False

    for value in ("0", "1"):
        rds.modify_db_parameter_group(
            DBParameterGroupName="g",
            Parameters=[{"ParameterName": "rds.force_ssl", "ParameterValue": value, "ApplyMethod": "immediate"}],
        )
        expected = value == "0"
        assert eventually(lambda expected=expected: plain_is_served() is expected)  # type: ignore[misc]


def test_a_database_stops_and_starts_with_its_data(account: Account) -> None:
    rds = account.client("rds")
    with contextlib.closing(account.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 42 AS value")
    rds.stop_db_instance(DBInstanceIdentifier="db")
    assert eventually(lambda: account.database_status() == "stopped")
    # the server ended by itself: a killed one would have to recover, and could find its own stale lock file
    assert account.container("databases").attrs["State"]["ExitCode"] == 0
    with pytest.raises(psycopg2.OperationalError):
        account.connect(connect_timeout="3")
    rds.start_db_instance(DBInstanceIdentifier="db")
    assert eventually(lambda: account.database_status() == "available")
    with contextlib.closing(account.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM kept")
        assert cursor.fetchone() == (42,)


def test_a_failover_takes_its_time_and_keeps_what_was_committed(account: Account) -> None:
    rds = account.client("rds")
    with pytest.raises(ClientError, match="InvalidParameterCombination"):
        rds.reboot_db_instance(DBInstanceIdentifier="db", ForceFailover=True)
    rds.modify_db_instance(DBInstanceIdentifier="db", MultiAZ=True, ApplyImmediately=True)
    with contextlib.closing(account.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE committed AS SELECT 43 AS value")
        connection.commit()
        started = time.monotonic()
        rds.reboot_db_instance(DBInstanceIdentifier="db", ForceFailover=True)
        with pytest.raises(psycopg2.OperationalError):
            account.connect(connect_timeout="3")
        assert eventually(lambda: account.database_status() == "available", seconds=120)
        assert time.monotonic() - started > 60
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT 1")
    with contextlib.closing(account.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM committed")
        assert cursor.fetchone() == (43,)


def test_a_vpc_that_overlaps_is_refused_by_name(account: Account) -> None:
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock=account.cidr)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=account.cidr.replace("0.0/16", "9.0/24"))["Subnet"]["SubnetId"]
    with pytest.raises(ClientError, match=f"{account.cidr} of {vpc} overlaps with {account.cidr} .the Docker network"):
        ec2.run_instances(
            ImageId=account.ids["image"], InstanceType="t3.small", MinCount=1, MaxCount=1, SubnetId=subnet
        )


def test_what_ec2_does_not_know_is_refused(account: Account) -> None:
    ec2 = account.client("ec2")
    good = {"ImageId": account.ids["image"], "InstanceType": "t3.small", "SubnetId": account.ids["subnet"]}
    for wrong, code in (
        ({"ImageId": "ami-00000000000000000"}, "InvalidAMIID.NotFound"),
        ({"InstanceType": "t9.nope"}, "InvalidInstanceType"),
        ({"KeyName": "nope"}, "InvalidKeyPair.NotFound"),
    ):
        with pytest.raises(ClientError) as error:
            ec2.run_instances(MinCount=1, MaxCount=1, **{**good, **wrong})
        assert error.value.response["Error"]["Code"].startswith(code.split(".")[0])


def test_stop_and_start_keep_disk_and_addresses(account: Account) -> None:
    ec2, before = account.client("ec2"), account.instance()
    account.ssh("echo kept > kept; sudo systemctl is-active ssh")
    ec2.stop_instances(InstanceIds=[account.ids["instance"]])
    assert eventually(lambda: account.instance()["State"]["Name"] == "stopped")
    assert account.container("instances").status == "exited"
    ec2.start_instances(InstanceIds=[account.ids["instance"]])
    assert eventually(lambda: account.instance()["State"]["Name"] == "running")
    after = account.instance()
    assert [after[k] for k in ("PrivateIpAddress", "PublicIpAddress")] == [
        before[k] for k in ("PrivateIpAddress", "PublicIpAddress")
    ]
    assert account.ssh("cat kept").strip() == "kept"
    assert account.metadata("meta-data/instance-id") == account.ids["instance"]


def test_a_reboot_from_inside_comes_back_and_a_shutdown_stops(account: Account) -> None:
    started = account.container("instances").attrs["State"]["StartedAt"]
    account.ssh("sudo systemctl reboot", check=False)
    assert eventually(lambda: account.container("instances").attrs["State"]["StartedAt"] != started)
    assert eventually(lambda: account.ssh("echo up", check=False).strip() == "up")
    assert account.instance()["State"]["Name"] == "running"
    account.ssh("sudo systemctl poweroff", check=False)
    assert eventually(lambda: account.instance()["State"]["Name"] == "stopped")
    account.client("ec2").start_instances(InstanceIds=[account.ids["instance"]])
    assert eventually(lambda: account.instance()["State"]["Name"] == "running")


def test_several_instances_boot_at_once_and_go_again(account: Account) -> None:
    ec2 = account.client("ec2")
    nic = {"DeviceIndex": 0, "SubnetId": account.ids["subnet"], "AssociatePublicIpAddress": True}
    run = ec2.run_instances(
        ImageId=account.ids["image"], InstanceType="t3.small", MinCount=3, MaxCount=3, NetworkInterfaces=[nic]
    )
    ids = [instance["InstanceId"] for instance in run["Instances"]]

    def instances() -> list[dict[str, Any]]:
        found = ec2.describe_instances(InstanceIds=ids)["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]

    assert eventually(lambda: {i["State"]["Name"] for i in instances()} == {"running"}, 90)
    assert len({i["PublicIpAddress"] for i in instances()} | {account.ids["address"]}) == 4
    ec2.terminate_instances(InstanceIds=ids)
    assert eventually(lambda: {i["State"]["Name"] for i in instances()} == {"terminated"})
    assert len(json.loads(local_aws(account.directory, "status"))["instances"]) == 1


def test_protection_and_final_snapshot_of_a_database(account: Account) -> None:
    rds = account.client("rds")
    with pytest.raises(ClientError, match="protected"):
        rds.delete_db_instance(DBInstanceIdentifier="db", SkipFinalSnapshot=True)
    container = account.container("databases")
    rds.modify_db_instance(DBInstanceIdentifier="db", DeletionProtection=False, ApplyImmediately=True)
    rds.delete_db_instance(DBInstanceIdentifier="db", FinalDBSnapshotIdentifier="last")
    assert rds.describe_db_snapshots(DBSnapshotIdentifier="last")["DBSnapshots"][0]["Status"] == "available"
    with pytest.raises(docker.errors.NotFound):
        container.reload()


def test_a_killed_daemon_leaves_nothing_that_breaks_a_start(account: Account) -> None:
    container = account.container("instances")
    pid = json.loads(local_aws(account.directory, "status"))["pid"]
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not json.loads(local_aws(account.directory, "status"))["running"])
    container.reload()  # still there: nobody cleaned up yet
    started = said(account.directory, "start")
    assert started.stdout.strip() == account.env["AWS_ENDPOINT_URL"]
    assert variables(account.directory) == account.env
    with pytest.raises(docker.errors.NotFound):
        container.reload()
    assert account.client("ec2").describe_instances()["Reservations"] == []


def test_a_start_removes_what_dead_accounts_left_and_nothing_of_living_ones(account: Account, tmp_path: Path) -> None:
    client = docker.from_env()
    dead, living = tmp_path / "dead", tmp_path / "living"
    living.mkdir()
    with StateDir(living).daemon_lock():
        kept, left = (
            client.networks.create(f"local-aws-test-{path.name}", labels=StateDir(path).labels)
            for path in (living, dead)
        )
        try:
            local_aws(account.directory, "stop")
            local_aws(account.directory, "start")
            kept.reload()
            with pytest.raises(docker.errors.NotFound):
                left.reload()
        finally:
            kept.remove()
    assert not dead.exists()


def test_stop_removes_everything_and_is_idempotent(account: Account) -> None:
    label = f"local_aws.state={account.directory.resolve()}"
    client = docker.from_env()
    assert client.networks.list(filters={"label": label})
    for _ in range(2):
        local_aws(account.directory, "stop")
        assert client.networks.list(filters={"label": label}) == []
        assert client.containers.list(all=True, filters={"label": label}) == []
