"""The sweep against moto: each kind made and found, and what belongs to others left alone."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.client
import pytest
import stack_account as make
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_aws.plugins.module_utils import _stack_resources as engine
from ansible_collections.mlops.mlflow_aws.plugins.modules import stack_resources_info as module
from botocore.exceptions import ClientError

ROOT = Path(__file__).resolve().parents[4]
KINDS = {kind.type: kind for kind in engine.KINDS}
NAMED = sorted(type_ for type_, kind in KINDS.items() if kind.by_name and type_ != "record")
CLIENT: Any = botocore.client.BaseClient
Ask = Callable[..., dict[str, Any]]


def tag(stack: str) -> dict[str, str]:
    return {"mlflow:stack": stack, "Team": "science"}


def run(stack: str = "demo", **options: Any) -> dict[str, Any]:
    """Runs the module as Ansible does, in this process, and returns what it printed."""
    printed = io.StringIO()
    arguments = {"stack": stack, "region": make.REGION, **options}
    with patch_module_args(arguments), redirect_stdout(printed), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(printed.getvalue())
    return answer


@pytest.fixture
def ask() -> Iterator[Ask]:
    """The module, in an account of its own."""
    with make.empty_account():
        yield run


def ids(answer: dict[str, Any], type_: str, key: str = "resources") -> set[str]:
    return {entry["id"] for entry in answer[key] if entry["type"] == type_}


def test_there_is_a_maker_for_each_kind() -> None:
    assert set(make.MAKERS) | {"record"} == set(KINDS)


def test_an_empty_account_has_nothing(ask: Ask) -> None:
    answer = ask()
    assert answer["resources"] == answer["remaining"] == answer["kept"] == answer["ambiguous"] == []
    assert (answer["count"], answer["changed"], answer["not_checked"]) == (0, False, [])
    assert answer["services_checked"] == sorted(engine.SERVICES)
    assert (answer["account_id"], answer["region"]) == ("123456789012", make.REGION)


@dataclass
class World:
    """One of each kind for each of several owners: the ids that were made, by name, and what the sweep then says."""

    made: dict[str, dict[str, str]]
    answer: dict[str, Any]


def world(owners: dict[str, dict[str, str]]) -> World:
    with make.empty_account():
        made = {
            name: {type_: maker(name, tags) for type_, maker in make.MAKERS.items()} for name, tags in owners.items()
        }
        return World(made, run())


@pytest.fixture(scope="module")
def tagged() -> World:
    mine = {"mlflow-demo-x1": tag("demo"), "odd-name": tag("demo")}
    return world({**mine, "mlflow-demo-2-x1": tag("demo-2"), "mlflow-demo-server": tag("prod")})


@pytest.fixture(scope="module")
def untagged() -> World:
    return world(
        {name: {} for name in ("mlflow-demo-server", "mlflow-demo-2-server", "mlflow-demo2", "my-mlflow-demo")}
    )


# Moto cannot tag what is left of a deleted database, nor what scales a service. The name tells.
TAGGABLE = sorted(set(make.MAKERS) - {"db_automated_backup", "scalable_target"})


@pytest.mark.parametrize("type_", TAGGABLE)
def test_a_tagged_resource_is_found_and_that_of_another_stack_is_not(tagged: World, type_: str) -> None:
    found = ids(tagged.answer, type_)
    assert tagged.made["mlflow-demo-x1"][type_] in found
    assert not {tagged.made["mlflow-demo-2-x1"][type_], tagged.made["mlflow-demo-server"][type_]} & found
    mine = (type_, tagged.made["mlflow-demo-x1"][type_])
    (entry,) = (entry for entry in tagged.answer["resources"] if (entry["type"], entry["id"]) == mine)
    assert (entry["matched_by"], entry["stack"], entry["service"]) == ("tag", "demo", KINDS[type_].service)
    assert entry["arn"].startswith("arn:aws:")


# IAM is not in the tagging index, and what the index knows of the others in moto is checked below.
@pytest.mark.parametrize("type_", sorted({kind.type for kind in engine.KINDS if kind.tags is None} & set(TAGGABLE)))
def test_a_tag_is_enough_whatever_the_name(tagged: World, type_: str) -> None:
    assert tagged.made["odd-name"][type_] in ids(tagged.answer, type_)


def test_nothing_of_the_tagged_world_is_ambiguous(tagged: World) -> None:
    assert [entry for entry in tagged.answer["ambiguous"] if entry["type"] in TAGGABLE] == []


@pytest.mark.parametrize("type_", NAMED)
def test_an_untagged_resource_is_found_by_its_name_and_no_other(untagged: World, type_: str) -> None:
    mine = untagged.made["mlflow-demo-server"][type_]
    assert mine in ids(untagged.answer, type_)
    for name in ("mlflow-demo-2-server", "mlflow-demo2", "my-mlflow-demo"):
        assert untagged.made[name][type_] not in ids(untagged.answer, type_)
    (entry,) = (e for e in untagged.answer["resources"] if e["type"] == type_ and e["id"] == mine)
    assert entry["matched_by"] == "name"
    # It could be the stack demo-2's, or something of demo's that no role makes: a person must judge.
    ambiguous = ids(untagged.answer, type_, "ambiguous")
    assert untagged.made["mlflow-demo-2-server"][type_] in ambiguous
    assert not {mine, untagged.made["mlflow-demo2"][type_], untagged.made["my-mlflow-demo"][type_]} & ambiguous


@pytest.mark.parametrize("type_", sorted({kind.type for kind in engine.KINDS if not kind.by_name}))
def test_a_name_is_no_evidence_for_what_is_called_after_a_domain(ask: Ask, type_: str) -> None:
    make.MAKERS[type_]("mlflow-demo", {})
    answer = ask(services=[KINDS[type_].service], names=["mlflow-demo.example.com"])
    assert answer["resources"] == answer["ambiguous"] == []


def test_the_tags_of_another_stack_explain_its_untagged_resources(ask: Ask) -> None:
    make.bucket("mlflow-demo-2-oddly", {})
    assert ids(ask(services=["s3", "iam"]), "bucket", "ambiguous") == {"mlflow-demo-2-oddly"}
    make.role("mlflow-demo-2-server", tag("demo-2"))
    assert ask(services=["s3", "iam"])["ambiguous"] == []


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("mlflow-demo", True),
        ("mlflow-demo/database", True),
        ("mlflow-demo/what-a-user-added", True),
        ("/aws/rds/instance/mlflow-demo/postgresql", True),
        ("mlflow-demo-postgres17", True),
        ("mlflow-demo-public-a", True),
        ("mlflow-demo-123456789012-eu-central-1", True),
        ("mlflow-demo-artifacts-123456789012-us-gov-west-1", True),
        ("mlflow-demo-123456789012-eu-central-1-logs", True),
        ("mlflow-demo-fleet-100", True),
        ("mlflow-demo-ec2", True),
        ("mlflow-demo-setup", True),
        ("/mlflow/demo", True),
        ("service/mlflow-demo/mlflow-demo", True),
        ("/mlflow/demo-2", False),
        ("mlflow-demo-2-fleet-1", False),
        ("mlflow-demo-fleet-x", False),
        ("mlflow-demo-final-20261121035200", True),
        ("mlflow-demo-final-20261121t0352z", True),
        ("mlflow-demo-2", False),
        ("mlflow-demo-2/database", False),
        ("mlflow-demo2", False),
        ("mlflow-demo-eu", False),
        ("mlflow-demo-prod-server", False),
        ("mlflow-demo-postgres17x", False),
        ("mlflow-demo-", False),
        ("xmlflow-demo", False),
        ("mlflow-dem", False),
        ("", False),
    ],
)
def test_names(name: str, mine: bool) -> None:
    assert engine.Stack("demo").certain(name) is mine


def test_every_name_that_a_role_derives_is_known() -> None:
    """Or the sweep would overlook that resource as soon as it lacks its tags, as after an interrupted run."""
    found = set()
    for path in ROOT.glob("roles/aws_*/**/*.yml"):
        text = path.read_text()
        for match in re.finditer(
            r"""name: "?(?:mlflow-\{\{ *\w+_stack *\}\}|\{\{ *__aws_\w+_(?:name|prefix) *\}\})(-[^"\s]*)"?""", text
        ):
            found.add(re.sub(r"\{\{ *__aws_database_family *\}\}", "postgres17", match[1]))
    assert {"-server", "-database"} <= found, "the pattern finds no names any more"
    assert [
        name for name in sorted(found) if "{{" not in name and not engine.Stack("demo").certain(f"mlflow-demo{name}")
    ] == []


def test_further_names_belong_to_the_stack(ask: Ask) -> None:
    make.bucket("the-teams-models", {})
    assert ask(services=["s3"])["resources"] == []
    assert ids(ask(services=["s3"], names=["the-teams-models", ""]), "bucket") == {"the-teams-models"}


def test_what_lies_in_the_stacks_vpc_belongs_to_it(ask: Ask) -> None:
    vpc = make.vpc("mlflow-demo", tag("demo"))
    subnet = make.subnet("hand-made", {}, vpc)
    interface = make.network_interface("hand-made", {}, subnet)
    foreign = make.security_group("of-another-stack", tag("prod"), vpc)
    instance = make.instance("hand-made", {}, subnet)
    volumes = {volume["VolumeId"] for volume in make.client("ec2").describe_volumes()["Volumes"]}
    snapshot = make.snapshot("hand-made", {}, next(iter(volumes)))
    answer = ask(services=["ec2"])
    assert ids(answer, "subnet") == {subnet}
    assert interface in ids(answer, "network_interface")
    assert ids(answer, "instance") == {instance}
    assert (ids(answer, "volume"), ids(answer, "snapshot")) == (volumes, {snapshot})
    assert foreign not in ids(answer, "security_group")
    # The VPC's own, which nobody can delete.
    assert ids(answer, "security_group") == ids(answer, "route_table") == set()
    assert {entry["matched_by"] for entry in answer["resources"] if entry["type"] != "vpc"} == {"attachment"}


def test_a_terminated_instance_and_a_deleted_gateway_are_gone(ask: Ask) -> None:
    ec2 = make.client("ec2")
    instance, gateway = make.instance("mlflow-demo", tag("demo")), make.nat_gateway("mlflow-demo", tag("demo"))
    assert ask(services=["ec2"])["count"] == 4  # with the volume and the interface
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.delete_nat_gateway(NatGatewayId=gateway)
    answer = ask(services=["ec2"])
    assert ids(answer, "instance") == ids(answer, "nat_gateway") == set()


def test_an_inactive_task_definition_is_gone(ask: Ask) -> None:
    ecs = make.client("ecs")
    old, new = (make.task_definition("mlflow-demo", tag("demo")) for _ in range(2))
    assert ids(ask(services=["ecs"]), "task_definition") == {old, new}
    ecs.deregister_task_definition(taskDefinition=old)
    # The tagging index goes on showing it, and must not bring it back.
    assert ids(ask(services=["ecs", "resourcegroupstaggingapi"]), "task_definition") == {new}
    ecs.deregister_task_definition(taskDefinition=new)
    assert ask(services=["ecs", "resourcegroupstaggingapi"])["resources"] == []


def test_a_snapshot_belongs_to_the_stack_of_its_database(ask: Ask) -> None:
    source = make.db_instance("mlflow-demo", tag("demo"))
    make.db_snapshot("before-the-upgrade", {}, source)
    answer = ask(services=["rds"], keep=["db_snapshot"])
    assert ids(answer, "db_snapshot", "kept") == {"before-the-upgrade"}
    assert ids(answer, "db_instance", "remaining") == {"mlflow-demo"}
    assert answer["count"] == len(answer["kept"]) + len(answer["remaining"])
    assert {entry["kept_by"] for entry in answer["kept"]} == {"keep"}


def test_a_secret_in_its_recovery_window_is_kept_by_aws(ask: Ask) -> None:
    make.secret("mlflow-demo/admin", tag("demo"))
    make.client("secretsmanager").delete_secret(SecretId="mlflow-demo/admin", RecoveryWindowInDays=7)
    (entry,) = ask(services=["secretsmanager"])["kept"]
    assert entry["state"] == "scheduled for deletion"
    assert entry["kept_by"].startswith("recovery window after its deletion at 20")


def test_records_belong_to_the_stack_that_stands_beside_them(ask: Ask) -> None:
    zone = make.hosted_zone("example.com", {})
    other_zone = make.hosted_zone("example.org", {})
    mine = {
        make.record(zone, "mlflow.example.com"),
        make.record(zone, "_mlflow-stack.mlflow.example.com", "TXT", '"heritage=mlops.mlflow_aws,stack=demo"'),
        make.record(zone, "_0123abcd.mlflow.example.com", "CNAME", "_4567.acm-validations.aws."),
    }
    make.record(zone, "mlflow-2.example.com")
    make.record(zone, "_mlflow-stack.mlflow-2.example.com", "TXT", '"heritage=mlops.mlflow_aws,stack=demo-2"')
    make.record(zone, "www.example.com")
    make.record(zone, "_mlflow-stack.www.example.com", "TXT", '"heritage=external-dns,stack=demo"')
    make.record(other_zone, "mlflow.example.org")
    answer = ask(services=["route53"], record_names=["mlflow.example.com", "mlflow-2.example.com", "WWW.example.com."])
    assert ids(answer, "record") == mine
    # Nobody's, as far as this collection knows: the role does not touch it, so it is not left over either.
    assert ids(answer, "record", "ambiguous") == {f"{zone}/www.example.com/A"}
    assert ask(services=["route53"])["ambiguous"] == []
    assert {entry["arn"] for entry in answer["resources"]} == {""}


def test_the_proof_of_a_certificate_without_an_owner_is_for_a_person_to_judge(ask: Ask) -> None:
    zone = make.hosted_zone("example.com", {})
    proof = make.record(zone, "_0123abcd.mlflow.example.com", "CNAME", "_4567.acm-validations.aws.")
    make.record(zone, "_0123abcd.www.example.com", "CNAME", "_4567.acm-validations.aws.")
    answer = ask(services=["route53"], record_names=["mlflow.example.com"])
    assert (answer["resources"], ids(answer, "record", "ambiguous")) == ([], {proof})


def test_the_role_writes_the_owner_that_the_sweep_reads() -> None:
    role = yaml.safe_load((ROOT / "roles/aws_dns/vars/main.yml").read_text())
    assert role["__aws_dns_owner_name"] == engine.RECORD_OWNER_PREFIX + "{{ aws_dns_name }}"
    match = engine.RECORD_OWNER.fullmatch(role["__aws_dns_owner"].replace("{{ aws_dns_stack }}", "demo"))
    assert match and match["stack"] == "demo"


# -- the tagging index -------------------------------------------------------------------------------------------------


def own(candidates: list[engine.Candidate], arns: list[str], unchecked: list[engine.Unchecked] | None = None) -> Any:
    owned, _ = engine.own(engine.Stack("demo"), candidates, arns, unchecked or [])
    return [(entry.candidate.type, entry.candidate.id, entry.by) for entry in owned]


QUEUE = "arn:aws:sqs:eu-central-1:123456789012:jobs"
BUCKET = "arn:aws:s3:::models"


def test_the_index_adds_services_that_nobody_asks() -> None:
    assert own([], [QUEUE]) == [("jobs", QUEUE, "index")]


def test_the_index_tells_the_tags_of_what_a_listing_shows_without() -> None:
    assert own([engine.Candidate("s3", "bucket", "models", "models", arn=BUCKET)], [BUCKET]) == [
        ("bucket", "models", "tag")
    ]


def test_the_index_yields_to_the_tags_themselves() -> None:
    candidate = engine.Candidate("s3", "bucket", "models", "models", arn=BUCKET, tags={"mlflow:stack": "prod"})
    assert own([candidate], [BUCKET]) == []


def test_the_index_lags_so_the_service_is_believed() -> None:
    assert own([], [BUCKET, "arn:aws:ec2:eu-central-1:123456789012:vpc/vpc-1"]) == []


def test_the_index_stands_in_for_a_service_that_did_not_answer() -> None:
    unchecked = [engine.Unchecked("s3", "bucket", "AccessDenied", ())]
    assert own([], [BUCKET], unchecked) == [("bucket", BUCKET, "index")]


def test_a_listener_goes_with_its_load_balancer() -> None:
    assert own([], ["arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener/app/mlflow-demo/1/2"]) == []


def test_the_index_is_asked(ask: Ask) -> None:
    make.bucket("a-bucket-with-its-own-name", tag("demo"))
    make.bucket("a-bucket-of-another-stack", tag("demo-2"))
    answer = ask(services=["s3", "resourcegroupstaggingapi"])
    assert ids(answer, "bucket") == {"a-bucket-with-its-own-name"}


@pytest.mark.parametrize("type_", sorted(type_ for type_, kind in KINDS.items() if kind.arn_types))
def test_the_arn_of_each_kind_is_recognised(untagged: World, tagged: World, type_: str) -> None:
    """Else what the index still shows after its deletion would be reported."""
    found = [
        entry["arn"] for world in (tagged, untagged) for entry in world.answer["resources"] if entry["type"] == type_
    ]
    if type_ == "db_automated_backup":  # moto leaves out this one ARN
        found = ["arn:aws:rds:eu-central-1:123456789012:auto-backup:ab-0123456789abcdef"]
    assert found
    for arn in found:
        kind = engine._kind_of_arn(arn)
        assert kind is not None and kind.type == type_


# -- faults ------------------------------------------------------------------------------------------------------------


class Fault:
    """Makes an operation of AWS fail: @times times, or for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, operation: str, code: str, times: int | None = None) -> None:
        self.calls = 0
        lock, original = threading.Lock(), CLIENT._make_api_call

        def call(client: Any, name: str, arguments: Any) -> Any:
            if name == operation:
                with lock:
                    self.calls += 1
                if times is None or self.calls <= times:
                    raise ClientError({"Error": {"Code": code, "Message": f"fault for {operation}"}}, operation)
            return original(client, name, arguments)

        monkeypatch.setattr(CLIENT, "_make_api_call", call)


def test_a_service_that_cannot_be_asked_fails_the_sweep(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    make.bucket("mlflow-demo", tag("demo"))
    Fault(monkeypatch, "ListRoles", "AccessDenied")
    answer = ask()
    assert answer["failed"] is True
    assert answer["not_checked"] == [
        {
            "service": "iam",
            "type": "role",
            "cause": "An error occurred (AccessDenied) when calling the ListRoles operation: fault for ListRoles",
            "actions": ["iam:ListRoles", "iam:ListRoleTags"],
        }
    ]
    assert "iam" not in answer["services_checked"] and "s3" in answer["services_checked"]
    assert ids(answer, "bucket") == {"mlflow-demo"}
    message = answer["msg"]
    assert "stack demo" in message and "iam role (An error occurred (AccessDenied)" in message
    assert "123456789012:" in message and "iam:ListRoleTags, iam:ListRoles" in message


def test_on_request_it_is_reported_only(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    Fault(monkeypatch, "DescribeVpcs", "UnauthorizedOperation")
    answer = ask(fail_on_unchecked=False)
    assert "failed" not in answer
    assert [(item["service"], item["type"]) for item in answer["not_checked"]] == [("ec2", "vpc")]


def test_the_index_can_fail_like_any_other(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    Fault(monkeypatch, "GetResources", "AccessDeniedException")
    answer = ask()
    assert answer["failed"] is True
    assert answer["not_checked"][0]["actions"] == ["tag:GetResources"]


def test_throttling_is_waited_out(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    make.vpc("mlflow-demo", tag("demo"))
    fault = Fault(monkeypatch, "DescribeVpcs", "RequestLimitExceeded", times=2)
    answer = ask(services=["ec2"])
    assert fault.calls == 3
    assert len(ids(answer, "vpc")) == 1


def test_what_vanishes_while_it_is_looked_at_is_gone(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    make.role("mlflow-demo-server", tag("demo"))
    Fault(monkeypatch, "ListRoleTags", "NoSuchEntity")
    answer = ask(services=["iam"])
    assert (answer["resources"], answer["not_checked"]) == ([], [])


def test_tags_that_may_not_be_read_are_no_absence_of_tags(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    make.role("mlflow-demo-server", tag("demo"))
    Fault(monkeypatch, "ListRoleTags", "AccessDenied")
    assert ask(services=["iam"])["failed"] is True


def test_all_pages_are_read(ask: Ask) -> None:
    for number in range(60):  # DescribeParameters gives 50 a page at most, ten unasked
        make.parameter(f"/mlflow-demo/{number}", tag("demo"))
    assert ask(services=["ssm"])["count"] == 60


@pytest.mark.parametrize("stack", ["", "Demo", "demo/x", "demo-", "-demo", "de mo", "demo\n"])
def test_a_stack_that_cannot_be_is_refused_before_any_call(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, stack: str
) -> None:
    fault = Fault(monkeypatch, "GetCallerIdentity", "Unexpected")
    answer = ask(stack)
    assert answer["failed"] is True and "small letters, digits and inner dashes" in answer["msg"]
    assert fault.calls == 0


def test_an_unknown_type_to_keep_is_refused(ask: Ask) -> None:
    answer = ask(keep=["bukket"])
    assert answer["failed"] is True and "keep names bukket" in answer["msg"] and "bucket" in answer["msg"]


def test_missing_credentials_are_one_message(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    answer = ask()
    assert answer["failed"] is True
    assert answer["msg"].startswith(
        f"Failed to ask AWS in {make.REGION} about the stack demo: Unable to locate credentials"
    )


def test_check_mode_does_the_same(ask: Ask) -> None:
    make.bucket("mlflow-demo", tag("demo"))
    assert ask(_ansible_check_mode=True) == ask()


# -- the documentation -------------------------------------------------------------------------------------------------


def test_the_documented_permissions_are_those_of_the_table() -> None:
    documented = set(re.findall(r"C\(([a-z0-9-]+:[A-Z]\w+)\)", module.DOCUMENTATION))
    needed = {action for kind in engine.KINDS for action in kind.actions} | set(engine.INDEX_ACTIONS)
    assert documented == needed | {"sts:GetCallerIdentity"}


def test_the_documented_services_are_those_of_the_table() -> None:
    assert yaml.safe_load(module.DOCUMENTATION)["options"]["services"]["choices"] == list(engine.SERVICES)


def test_the_permissions_are_those_that_the_calls_take(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that a sweep makes must be in the table, or a user grants too little."""
    calls: set[str] = set()
    original = CLIENT._make_api_call

    def call(client: Any, name: str, arguments: Any) -> Any:
        prefix = {"elbv2": "elasticloadbalancing", "resourcegroupstaggingapi": "tag"}
        service = client.meta.service_model.service_name
        calls.add(f"{prefix.get(service, service)}:{name}")
        return original(client, name, arguments)

    for type_ in make.MAKERS:
        make.MAKERS[type_]("mlflow-demo", tag("demo"))
    monkeypatch.setattr(CLIENT, "_make_api_call", call)
    assert "failed" not in ask()
    needed = {action for kind in engine.KINDS for action in kind.actions} | set(engine.INDEX_ACTIONS)
    # IAM names this one permission otherwise than the call.
    assert {call.replace("s3:ListBuckets", "s3:ListAllMyBuckets") for call in calls} == needed | {
        "sts:GetCallerIdentity"
    }
