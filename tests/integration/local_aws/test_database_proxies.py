"""An RDS Proxy of the local AWS really pools: many clients, few connections, none more than it may open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import psycopg2
import pytest
from botocore.exceptions import ClientError
from running import RunningAccount, eventually, free_cidr, local_aws, variables

MASTER, PASSWORD = "mlflow_master", "p@ss/w:rd#100%&x"
SERVER = "0123456789abcdef"
PERCENT = 20  # of the 79 connections of a db.t4g.micro, rounded down: 15
MOST = 15
CLIENTS = 100  # more than the database takes
NAME = "mlflow-pooled"
DATABASE = "mlflow-pooled-db"


class Account:
    """A database with the server's role, and a proxy in front of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        env = variables(directory)
        self.ca = env["AWS_CA_BUNDLE"]
        client = RunningAccount(directory, env).client
        self.rds, self.ec2, self.manager = client("rds"), client("ec2"), client("secretsmanager")
        zones = [zone["ZoneName"] for zone in self.ec2.describe_availability_zones()["AvailabilityZones"]][:2]
        cidr = str(free_cidr(range(90, 100)))
        vpc = self.ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
        base = cidr.rsplit(".", 2)[0]
        self.subnets = [
            self.ec2.create_subnet(VpcId=vpc, CidrBlock=f"{base}.{number}.0/24", AvailabilityZone=zone)["Subnet"][
                "SubnetId"
            ]
            for number, zone in enumerate(zones)
        ]
        self.rds.create_db_subnet_group(DBSubnetGroupName=NAME, DBSubnetGroupDescription="-", SubnetIds=self.subnets)
        self.rds.create_db_instance(
            DBInstanceIdentifier=DATABASE,
            DBInstanceClass="db.t4g.micro",
            Engine="postgres",
            AllocatedStorage=20,
            MasterUsername=MASTER,
            MasterUserPassword=PASSWORD,
            DBName="runs",
            DBSubnetGroupName=NAME,
        )
        secret = {"username": "mlflow", "password": SERVER}
        self.secret = self.manager.create_secret(Name=f"{NAME}/proxy", SecretString=json.dumps(secret))["ARN"]
        self.rds.create_db_proxy(
            DBProxyName=NAME,
            EngineFamily="POSTGRESQL",
            Auth=[{"AuthScheme": "SECRETS", "SecretArn": self.secret, "IAMAuth": "DISABLED"}],
            RoleArn="arn:aws:iam::123456789012:role/of-the-proxy",
            VpcSubnetIds=self.subnets,
            RequireTLS=True,
        )
        assert eventually(lambda: self.database()["DBInstanceStatus"] == "available", 120)
        assert eventually(lambda: self.proxy()["Status"] == "available", 240)
        self.rds.modify_db_proxy_target_group(
            DBProxyName=NAME,
            TargetGroupName="default",
            ConnectionPoolConfig={"MaxConnectionsPercent": PERCENT, "ConnectionBorrowTimeout": 5},
        )
        self.rds.register_db_proxy_targets(DBProxyName=NAME, DBInstanceIdentifiers=[DATABASE])

    def database(self) -> Any:
        return self.rds.describe_db_instances(DBInstanceIdentifier=DATABASE)["DBInstances"][0]

    def proxy(self) -> Any:
        return self.rds.describe_db_proxies(DBProxyName=NAME)["DBProxies"][0]

    def health(self) -> Any:
        (target,) = self.rds.describe_db_proxy_targets(DBProxyName=NAME)["Targets"]
        return target["TargetHealth"]

    def addresses(self) -> dict[str, str]:
        told = json.loads(local_aws(self.directory, "status"))
        return {found["id"]: found["private_address"] for found in told["databases"] + told["database_proxies"]}

    def direct(self, **more: Any) -> Any:
        name = self.database()["Endpoint"]["Address"]
        given = {"user": MASTER, "password": PASSWORD, "dbname": "runs", "sslmode": "require", **more}
        return psycopg2.connect(host=name, hostaddr=self.addresses()[DATABASE], connect_timeout=10, **given)

    def pooled(self, address: str = "", **more: Any) -> Any:
        """A connection as the server makes it, by the name and the authority that it trusts."""
        given = {"user": "mlflow", "password": SERVER, "dbname": "runs", "sslmode": "verify-full", **more}
        address = address or self.addresses()[NAME]
        return psycopg2.connect(
            host=self.proxy()["Endpoint"], hostaddr=address, sslrootcert=self.ca, connect_timeout=20, **given
        )


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    directory = tmp_path_factory.mktemp("proxies")
    local_aws(directory, "start")
    try:
        yield Account(directory)
    finally:
        local_aws(directory, "stop")


def ask(connection: Any, statement: str) -> Any:
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def test_a_login_that_is_not_there_yet_is_told_and_then_found(account: Account) -> None:
    assert eventually(lambda: account.health().get("Reason") == "AUTH_FAILURE", 30)
    with closing(account.direct()) as master:
        ask(master, f"CREATE ROLE mlflow LOGIN PASSWORD '{SERVER}'")
    assert eventually(lambda: account.health()["State"] == "AVAILABLE", 30)


def test_it_is_known_by_its_name_and_takes_tls_only(account: Account) -> None:
    with closing(account.pooled()) as link:
        assert ask(link, "SELECT current_user") == "mlflow"
    with pytest.raises(psycopg2.OperationalError, match=r"SSL required|TLS required"):
        account.pooled(sslmode="disable")
    with pytest.raises(psycopg2.OperationalError, match=r"certificate|host name"):
        psycopg2.connect(
            host="other.example", hostaddr=account.addresses()[NAME], user="mlflow", password=SERVER, dbname="runs",
            sslmode="verify-full", sslrootcert=account.ca,
        )  # fmt: skip


def test_a_wrong_password_and_another_role_are_refused(account: Account) -> None:
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        account.pooled(password="wrong")
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        account.pooled(user=MASTER, password=PASSWORD)


def test_startup_options_are_refused_as_rds_does(account: Account) -> None:
    with pytest.raises(psycopg2.OperationalError, match="unsupported startup parameter"):
        account.pooled(options="-c statement_timeout=5s")


def test_sixty_clients_share_what_the_proxy_may_open(account: Account) -> None:
    address = account.addresses()[NAME]
    links = [account.pooled(address) for _ in range(60)]
    try:
        with ThreadPoolExecutor(60) as pool:
            backends = set(pool.map(lambda link: ask(link, "SELECT pg_backend_pid() FROM pg_sleep(0.1)"), links))
        assert 1 < len(backends) <= MOST
    finally:
        for link in links:
            link.close()


def test_more_clients_than_the_database_takes_all_work(account: Account) -> None:
    address = account.addresses()[NAME]
    with closing(account.direct()) as master:
        assert int(ask(master, "SHOW max_connections")) < CLIENTS
        with ThreadPoolExecutor(CLIENTS) as pool:
            links = list(pool.map(lambda _: account.pooled(address), range(CLIENTS)))
            try:
                answers = list(pool.map(lambda link: ask(link, "SELECT 1 FROM pg_sleep(0.05)"), links))
                held = ask(master, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'mlflow'")
            finally:
                for link in links:
                    link.close()
    assert answers == [1] * CLIENTS
    assert held <= MOST


def test_it_follows_the_percentage_and_borrowing_ends(account: Account) -> None:
    config: Any = {"MaxConnectionsPercent": 1, "ConnectionBorrowTimeout": 2}  # less than one connection: one
    account.rds.modify_db_proxy_target_group(DBProxyName=NAME, TargetGroupName="default", ConnectionPoolConfig=config)
    address = account.addresses()[NAME]

    def only_one() -> bool:
        with closing(account.pooled(address)) as holder, closing(account.pooled(address)) as waiting:
            with holder.cursor() as cursor:
                cursor.execute("SELECT 1")  # its transaction stays open
            started = time.monotonic()
            try:
                ask(waiting, "SELECT 1")
            except psycopg2.OperationalError:  # PgBouncer closes what has waited too long
                return 1 < time.monotonic() - started < 6
        return False

    assert eventually(only_one, 30)
    config = {"MaxConnectionsPercent": PERCENT, "ConnectionBorrowTimeout": 5}
    account.rds.modify_db_proxy_target_group(DBProxyName=NAME, TargetGroupName="default", ConnectionPoolConfig=config)


def test_it_follows_the_database_through_a_reboot(account: Account) -> None:
    address = account.addresses()[NAME]
    with closing(account.pooled(address)) as link:
        before = ask(link, "SELECT pg_postmaster_start_time()")
        account.rds.reboot_db_instance(DBInstanceIdentifier=DATABASE)
        assert eventually(lambda: account.database()["DBInstanceStatus"] == "available", 60)
        assert eventually(lambda: account.health()["State"] == "AVAILABLE", 30)

        def answers() -> bool:
            try:
                return bool(ask(link, "SELECT pg_postmaster_start_time()") > before)
            except psycopg2.OperationalError:
                return False

        # the client's own connection has outlived the database's
        assert eventually(answers, 30)


def test_it_follows_the_secret(account: Account) -> None:
    with closing(account.direct()) as master:
        ask(master, "ALTER ROLE mlflow PASSWORD 'another0123456789'")
    secret = {"username": "mlflow", "password": "another0123456789"}
    account.manager.put_secret_value(SecretId=account.secret, SecretString=json.dumps(secret))

    def answers() -> bool:
        try:
            with closing(account.pooled(password="another0123456789")) as link:
                return bool(ask(link, "SELECT 1") == 1)
        except psycopg2.OperationalError:
            return False

    assert eventually(answers, 30)
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        account.pooled()


def test_it_takes_one_database_that_is_there(account: Account) -> None:
    with pytest.raises(ClientError, match="DBProxyTargetAlreadyRegisteredFault"):
        account.rds.register_db_proxy_targets(DBProxyName=NAME, DBInstanceIdentifiers=[DATABASE])
    with pytest.raises(ClientError, match="DBProxyNotFoundFault"):
        account.rds.delete_db_proxy(DBProxyName="mlflow-nobody")


def test_it_goes_away(account: Account) -> None:
    account.rds.delete_db_proxy(DBProxyName=NAME)
    with pytest.raises(ClientError, match="DBProxyNotFoundFault"):
        account.proxy()
    labels: dict[str, str | list[str] | bool] = {"label": f"local_aws.database_proxy={NAME}"}
    assert eventually(lambda: not docker.from_env().containers.list(all=True, filters=labels), 30)
