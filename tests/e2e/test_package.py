"""The built collection, installed where no checkout is: `mlops.mlflow_aws.site` and `.teardown`, with a domain."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures import ZONE
from stack import BIN, ROOT, Account, Control, Run


class Packaged(Control):
    """A control machine that has the collection from its tarball and none of the checkout."""

    collections: Path

    def environment(self, **more: str) -> dict[str, str]:
        empty = self.directory / "ansible.cfg"
        empty.touch()
        return super().environment(ANSIBLE_CONFIG=str(empty), ANSIBLE_COLLECTIONS_PATH=str(self.collections), **more)


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("build")
    subprocess.run(
        [str(BIN / "ansible-galaxy"), "collection", "build", "--output-path", str(directory), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(directory.glob("mlops-mlflow_aws-*.tar.gz"))


@pytest.fixture(scope="module")
def control(account: Account, tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    control = Packaged(
        tmp_path_factory.mktemp("packaged"),
        account,
        mlflow_stack="pkg",
        mlflow_domain=ZONE,
        mlflow_hostname="ml",
    )
    control.collections = control.directory / "collections"
    install = [
        str(BIN / "ansible-galaxy"),
        "collection",
        "install",
        str(tarball),
        "--no-deps",
        "-p",
        str(control.collections),
    ]
    subprocess.run(install, check=True, capture_output=True, env=control.environment())
    return control


@pytest.fixture(scope="module")
def site(control: Packaged) -> Run:
    return control.playbook("mlops.mlflow_aws.site").succeeded()


def records(account: Account) -> dict[tuple[str, str], list[str]]:
    route53 = account.client("route53")
    zone = route53.list_hosted_zones_by_name(DNSName=ZONE)["HostedZones"][0]["Id"]
    sets = route53.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    return {
        (item["Name"].rstrip("."), item["Type"]): [value["Value"] for value in item["ResourceRecords"]] for item in sets
    }


def test_tarball_holds_the_collection_and_nothing_else(tarball: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(tarball, tmp_path)
    top = {path.name for path in tmp_path.iterdir()}
    assert top <= {
        "FILES.json",
        "MANIFEST.json",
        "LICENSE",
        "README.md",
        "CHANGELOG.rst",
        "CONTRIBUTING.md",
        "changelogs",
        "docs",
        "meta",
        "playbooks",
        "plugins",
        "requirements.yml",
        "roles",
    }, top
    assert {"meta", "playbooks", "plugins", "roles"} <= top


def test_site_from_the_tarball_ends_verified(site: Run, control: Packaged) -> None:
    assert f"MLflow is up: https://ml.{ZONE}/ user: admin" in site.text
    assert f"MLFLOW_TRACKING_URI=https://ml.{ZONE}" in (control.files / "client.env").read_text()


def test_the_name_points_at_the_elastic_ip(site: Run, account: Account) -> None:
    addresses = account.client("ec2").describe_addresses(Filters=[{"Name": "tag:mlflow:stack", "Values": ["pkg"]}])[
        "Addresses"
    ]
    found = records(account)
    assert found[(f"ml.{ZONE}", "A")] == [addresses[0]["PublicIp"]]
    assert found[(f"_mlflow-stack.ml.{ZONE}", "TXT")] == ['"heritage=mlops.mlflow_aws,stack=pkg"']


def test_a_name_that_serves_somebody_else_is_not_taken(site: Run, control: Packaged, account: Account) -> None:
    route53 = account.client("route53")
    zone = route53.list_hosted_zones_by_name(DNSName=ZONE)["HostedZones"][0]["Id"]
    record = {"Name": f"taken.{ZONE}", "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.1"}]}
    route53.change_resource_record_sets(
        HostedZoneId=zone, ChangeBatch={"Changes": [{"Action": "CREATE", "ResourceRecordSet": record}]}
    )
    refused = control.playbook("mlops.mlflow_aws.provision", "-e", "mlflow_hostname=taken").refused()
    assert f"taken.{ZONE} (A) exists in the hosted zone {ZONE} and does not belong to the stack pkg" in refused.text
    assert records(account)[(f"taken.{ZONE}", "A")] == ["192.0.2.1"]


def test_teardown_from_the_tarball_leaves_nothing(site: Run, control: Packaged, account: Account) -> None:
    confirm = ("-e", "mlflow_teardown_confirm=pkg", "-e", "mlflow_teardown_data=delete")
    assert (
        "0 resources left of the stack pkg" in control.playbook("mlops.mlflow_aws.teardown", *confirm).succeeded().text
    )
    names = {name for name, _ in records(account)}
    assert names == {ZONE, f"taken.{ZONE}"}
