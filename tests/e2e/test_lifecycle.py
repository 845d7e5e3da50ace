"""The whole life of one stack, in the order of this file: site, again, in check mode, in use, torn down, swept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from stack import ROOT, Account, Control, Run
from user import client, wine, wine_served

TEARDOWN = ("-e", "mlflow_teardown_confirm=e2e")


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(tmp_path_factory.mktemp("control"), account, mlflow_stack="e2e")


@pytest.fixture(scope="module")
def site(control: Control) -> Run:
    """The first run, with everything that Ansible can print."""
    return control.playbook("site.yml", "-vvv", "--diff").succeeded()


@pytest.fixture(scope="module")
def logged(control: Control, site: Run, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged from outside the host."""
    return client(control, mlflow_python, "log")


def bucket_of(account: Account) -> str:
    names = [bucket["Name"] for bucket in account.client("s3").list_buckets()["Buckets"]]
    return str(next(name for name in names if name.startswith("mlflow-e2e-")))


def test_check_mode_on_an_empty_account_creates_nothing(account: Account, tmp_path: Path) -> None:
    check = Control(tmp_path, account, mlflow_stack="empty").playbook("site.yml", "--check", "--diff").succeeded()
    assert check.changed["localhost"] > 0, check.output
    mine = [{"Name": "tag:mlflow:stack", "Values": ["empty"]}]
    assert account.client("ec2").describe_vpcs(Filters=mine)["Vpcs"] == []
    secrets = account.client("secretsmanager").list_secrets()["SecretList"]
    assert [secret for secret in secrets if secret["Name"].startswith("mlflow-empty/")] == []
    assert not (tmp_path / ".mlflow_aws").exists()


def test_site_ends_verified(site: Run) -> None:
    assert re.search(r"MLflow is up: https://[0-9.]+/ user: admin", site.text)
    assert re.search(r"Verified in [0-9.]+ s: .*artifact \(SHA-256 equal\).*refused: no login.*5000, 5432", site.text)


def test_second_site_changes_nothing(control: Control, site: Run) -> None:
    second = control.playbook("site.yml").succeeded()
    assert second.changed and set(second.changed.values()) == {0}, second.output
    print(f"\nsecond site.yml: {second.seconds:.0f} s")


def test_check_mode_of_a_finished_stack_changes_nothing(control: Control, site: Run) -> None:
    check = control.playbook("site.yml", "--check", "--diff").succeeded()
    assert check.changed and set(check.changed.values()) == {0}, check.output


def test_client_reads_back_what_it_logged(control: Control, logged: dict[str, str], mlflow_python: Path) -> None:
    seen = client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])
    assert seen["versions"] == 1


def test_wine_example_trains_and_its_model_is_served(control: Control, site: Run, mlflow_python: Path) -> None:
    wine(control, mlflow_python)
    wine_served(control, mlflow_python)


def test_artifact_is_in_s3_and_run_in_postgresql(control: Control, account: Account, logged: dict[str, str]) -> None:
    s3 = account.client("s3")
    bucket = bucket_of(account)
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert any(
        key.startswith("artifacts/") and key.endswith(f"{logged['run_id']}/artifacts/weights/weights.bin")
        for key in keys
    ), keys
    database = account.client("rds").describe_db_instances(DBInstanceIdentifier="mlflow-e2e")["DBInstances"][0]
    secret = control.secrets()["database"]["master_password"]
    variables = control.directory / "query.json"
    variables.write_text(json.dumps({"ansible_password_for_query": secret}))
    query = {
        "login_host": database["Endpoint"]["Address"],
        "login_user": database["MasterUsername"],
        "login_password": "{{ ansible_password_for_query }}",
        "login_db": "mlflow",
        "ssl_mode": "require",
        "query": f"SET ROLE mlflow; SELECT status FROM runs WHERE run_uuid = '{logged['run_id']}'",
    }
    output = control.on_host("community.postgresql.postgresql_query", json.dumps(query), "-e", f"@{variables}")
    assert "FINISHED" in output


def test_bucket_is_closed(account: Account, site: Run) -> None:
    s3 = account.client("s3")
    bucket = bucket_of(account)
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    encryption = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    rules = {rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]}
    assert rules["mlflow-noncurrent-versions"]["NoncurrentVersionExpiration"]["NoncurrentDays"] == 30
    assert rules["mlflow-incomplete-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == 7


def test_instance_and_database_are_closed(account: Account, site: Run) -> None:
    ec2, rds = account.client("ec2"), account.client("rds")
    reservations = ec2.describe_instances(Filters=[{"Name": "tag:mlflow:stack", "Values": ["e2e"]}])["Reservations"]
    instance = reservations[0]["Instances"][0]
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    volume = ec2.describe_volumes(VolumeIds=[instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]])["Volumes"][0]
    assert (volume["Encrypted"], volume["VolumeType"]) == (True, "gp3")
    database = rds.describe_db_instances(DBInstanceIdentifier="mlflow-e2e")["DBInstances"][0]
    assert not database["PubliclyAccessible"]
    assert database["StorageEncrypted"]
    assert database["DeletionProtection"]
    assert database["BackupRetentionPeriod"] == 7
    every = [{"Name": "tag:mlflow:stack", "Values": ["e2e"]}]
    groups = {group["GroupId"]: group for group in ec2.describe_security_groups(Filters=every)["SecurityGroups"]}
    of_the_database = [group["VpcSecurityGroupId"] for group in database["VpcSecurityGroups"]]
    assert [groups[group]["GroupName"] for group in of_the_database] == ["mlflow-e2e-database"]
    servers = {"mlflow-e2e-server", "mlflow-e2e-fleet", "mlflow-e2e-task"}
    for name, clients in (("database", {*servers, "mlflow-e2e-proxy"}), ("proxy", servers)):
        (rule,) = next(group for group in groups.values() if group["GroupName"] == f"mlflow-e2e-{name}")[
            "IpPermissions"
        ]
        assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (5432, 5432, [])
        assert {groups[pair["GroupId"]]["GroupName"] for pair in rule["UserIdGroupPairs"]} == clients
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["mlflow-e2e-server"]


def test_no_secret_leaks(control: Control, site: Run, tmp_path: Path) -> None:
    """Neither Ansible's own output at -vvv nor anything that another user of the host can read holds a secret."""
    manager = control.account.client("secretsmanager")
    secrets = {
        f"{name}.{field}": value for name, fields in control.secrets().items() for field, value in fields.items()
    }
    ssh = manager.get_secret_value(SecretId="mlflow-e2e/ssh")["SecretString"].strip().splitlines()
    secrets["ssh"] = ssh[len(ssh) // 2]
    (tmp_path / "secrets.json").write_text(json.dumps(secrets))
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    (evidence / "ansible-vvv.log").write_text(site.output)
    for name, command in {
        "ps": "ps auxww",
        "systemctl-show": "systemctl show '*' --all",
        "journal": "journalctl --no-pager --output=cat",
        "environment-of-others": (
            "setpriv --reuid=nobody --clear-groups sh -c 'cat /proc/*/environ 2>/dev/null' | tr '\\0' '\\n'; true"
        ),
        "world-readable": (
            "find /etc /opt /var /home /root /run /tmp -xdev -type f -perm -o=r -size -512k"
            " -not -path '*/site-packages/*' -not -path '/var/lib/dpkg/*' -not -path '/var/lib/apt/*'"
            " -exec cat {} + 2>/dev/null; true"
        ),
    }.items():
        # Secrets are ASCII; what else a file holds does not travel through Ansible.
        printable = f"{{ {command}; }} | LC_ALL=C tr -cd '\\11\\12\\40-\\176'"
        (evidence / name).write_text(control.on_host("ansible.builtin.shell", printable))
    for path in evidence.iterdir():
        assert path.stat().st_size > 500, f"{path.name} shows nothing: {path.read_text()}"
    done = subprocess.run(
        [sys.executable, "-m", "tools.leaks", "--secrets", str(tmp_path / "secrets.json"), str(evidence)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_aws_key_on_the_host(control: Control, site: Run) -> None:
    places = "/root/.aws /home/*/.aws /var/lib/mlflow/.aws /etc /opt/mlflow/releases/*/*.* /var/lib/mlflow"
    found = control.on_host("ansible.builtin.shell", f"grep -rIlE 'A[KS]IA[A-Z0-9]{{12,}}' {places} 2>/dev/null; true")
    assert [line for line in found.splitlines() if line.startswith("/")] == []


def test_server_may_touch_its_artifacts_and_nothing_else(control: Control, account: Account, site: Run) -> None:
    probe = Path(__file__).with_name("policy_probe.py")
    control.on_host("ansible.builtin.copy", f"src={probe} dest=/tmp/probe.py mode=0644")
    # The CA of the store and the credentials of the metadata service are all that the server itself has.
    endpoint = account.environment["MLFLOW_S3_ENDPOINT_URL"]
    command = (
        "AWS_CA_BUNDLE=$(sed -n 's/^AWS_CA_BUNDLE=//p' /etc/mlflow/mlflow.env | tr -d '\"')"
        f" /opt/mlflow/current/bin/python /tmp/probe.py {bucket_of(account)} {endpoint};"
        " rm /tmp/probe.py"
    )
    account.command("enforce", "on")
    try:
        output = control.on_host("ansible.builtin.shell", command)
    finally:
        account.command("enforce", "off")
    answers = json.loads(output.rpartition("RESULT ")[2].splitlines()[0])
    allowed = {name for name, answer in answers.items() if answer == "ok"}
    assert allowed == {"put", "get", "list", "delete", "multipart"}, answers
    refusals = {answer for name, answer in answers.items() if name not in allowed}
    # 403 is what botocore makes of a refusal whose body names no code.
    assert refusals <= {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}, answers


def test_another_host_key_is_refused(control: Control, site: Run) -> None:
    known_hosts = control.files / "known_hosts"
    true_keys = known_hosts.read_text()
    other = control.directory / "other_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    known_hosts.write_text(f"{true_keys.split()[0]} {' '.join(other.with_suffix('.pub').read_text().split()[:2])}\n")
    try:
        with pytest.raises(
            AssertionError, match=r"(?i)host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED"
        ):
            control.on_host("ansible.builtin.command", "true", "--ssh-extra-args=-o ControlPath=none")
    finally:
        known_hosts.write_text(true_keys)


def test_another_control_machine_continues(control: Control, account: Account, site: Run, tmp_path: Path) -> None:
    """What a control machine needs comes back from AWS and the host: same key, same password, no change there."""
    other = Control(tmp_path, account, **control.inputs)
    run = other.playbook("site.yml").succeeded()
    assert [host for host, changed in run.changed.items() if changed] == ["localhost"], run.changed
    assert (other.files / "id_ed25519").read_bytes() == (control.files / "id_ed25519").read_bytes()
    assert (other.files / "known_hosts").read_bytes() == (control.files / "known_hosts").read_bytes()
    assert (
        other.client_environment()["MLFLOW_TRACKING_PASSWORD"]
        == control.client_environment()["MLFLOW_TRACKING_PASSWORD"]
    )


def test_hosts_are_prepared_while_the_database_is_not_available(
    control: Control, account: Account, site: Run, tmp_path: Path
) -> None:
    rds = account.client("rds")
    rds.stop_db_instance(DBInstanceIdentifier="mlflow-e2e")
    log = tmp_path / "ansible.log"
    with ThreadPoolExecutor() as pool:
        watched = control.environment(ANSIBLE_LOG_PATH=str(log))
        configuring = pool.submit(control.playbook, "playbooks/configure.yml", environment=watched)
        # It starts when the run has seen it stopped.
        while not configuring.done() and not (log.exists() and "PLAY [Prepare the hosts" in log.read_text()):
            time.sleep(0.2)
        rds.start_db_instance(DBInstanceIdentifier="mlflow-e2e")
        run = configuring.result().succeeded()
    before, _, after = run.output.partition("wait | Wait until the database is available")
    assert "mlflow_server : release | " in before, before[-3000:]
    assert after, run.output[-3000:]
    control.playbook("playbooks/verify.yml").succeeded()


def test_teardown_wants_the_name(control: Control, account: Account, site: Run) -> None:
    refused = control.playbook("teardown.yml", "-e", "mlflow_teardown_confirm=other").refused()
    assert 'The name given ("other") is not the stack of this inventory ("e2e"). Nothing was removed.' in refused.text
    assert account.client("rds").describe_db_instances(DBInstanceIdentifier="mlflow-e2e")["DBInstances"]


def test_teardown_keeps_the_data(control: Control, account: Account, logged: dict[str, str]) -> None:
    control.playbook("teardown.yml", *TEARDOWN).succeeded()
    report = json.loads((control.files / "teardown.json").read_text())
    assert report["remaining"] == []
    kept = sorted(item["type"] for item in report["kept"])
    assert kept == ["bucket", "db_snapshot", "secret", "secret", "secret"], report["kept"]
    keys = [item["Key"] for item in account.client("s3").list_objects_v2(Bucket=bucket_of(account))["Contents"]]
    assert any(key.endswith(f"{logged['run_id']}/artifacts/weights/weights.bin") for key in keys)
    snapshots = account.client("rds").describe_db_snapshots(SnapshotType="manual")["DBSnapshots"]
    assert [
        re.fullmatch(r"mlflow-e2e-final-\d{14}", item["DBSnapshotIdentifier"]) is not None for item in snapshots
    ] == [True]


def test_second_teardown_does_nothing(control: Control, account: Account) -> None:
    again = control.playbook("teardown.yml", *TEARDOWN).succeeded()
    assert set(again.changed.values()) == {0}, again.output


def test_teardown_deletes_the_data_when_told_to(control: Control, account: Account) -> None:
    run = control.playbook("teardown.yml", *TEARDOWN, "-e", "mlflow_teardown_data=delete").succeeded()
    assert "0 resources left of the stack e2e" in run.text
    assert json.loads((control.files / "teardown.json").read_text()) == {"remaining": [], "kept": [], "ambiguous": []}


def test_nothing_is_left_by_anybody_elses_count(account: Account, site: Run) -> None:
    """Asked without the collection's own sweep."""
    ec2, iam, rds = account.client("ec2"), account.client("iam"), account.client("rds")
    assert [vpc for vpc in ec2.describe_vpcs()["Vpcs"] if not vpc["IsDefault"]] == []
    states = {
        instance["State"]["Name"]
        for group in ec2.describe_instances()["Reservations"]
        for instance in group["Instances"]
    }
    assert states <= {"terminated"}
    assert ec2.describe_addresses()["Addresses"] == []
    assert ec2.describe_key_pairs()["KeyPairs"] == []
    assert ec2.describe_volumes()["Volumes"] == []
    assert [group for group in ec2.describe_security_groups()["SecurityGroups"] if "mlflow" in group["GroupName"]] == []
    assert rds.describe_db_instances()["DBInstances"] == []
    assert rds.describe_db_snapshots(SnapshotType="manual")["DBSnapshots"] == []
    assert rds.describe_db_subnet_groups()["DBSubnetGroups"] == []
    assert [
        group
        for group in rds.describe_db_parameter_groups()["DBParameterGroups"]
        if "mlflow" in group["DBParameterGroupName"]
    ] == []
    assert account.client("s3").list_buckets()["Buckets"] == []
    assert account.client("secretsmanager").list_secrets(IncludePlannedDeletion=True)["SecretList"] == []
    assert (
        account.client("logs").describe_log_groups(logGroupNamePrefix="/aws/rds/instance/mlflow-e2e/")["logGroups"]
        == []
    )
    assert [role["RoleName"] for role in iam.list_roles()["Roles"] if "mlflow" in role["RoleName"]] == []
    assert [
        profile
        for profile in iam.list_instance_profiles()["InstanceProfiles"]
        if "mlflow" in profile["InstanceProfileName"]
    ] == []
    with pytest.raises(ClientError):
        account.client("iam").get_role(RoleName="mlflow-e2e-server")


def test_second_full_teardown_does_nothing(control: Control, account: Account) -> None:
    again = control.playbook("teardown.yml", *TEARDOWN, "-e", "mlflow_teardown_data=delete").succeeded()
    assert set(again.changed.values()) == {0}, again.output
