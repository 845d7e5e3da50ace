"""A policy statement whose Condition or Principal does not fit the request says nothing; moto takes it as a denial.

moto knows no operator but StringEquals and takes every other one as fulfilled, so that a bucket policy "deny what comes
without TLS" denies everything. Here aws:SecureTransport is what the request really came over.

Sources: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

import flask
from moto.iam.access_control import IAMPolicyStatement, PermissionResult

from local_aws.patching import Patcher
from local_aws.server import secure_transport


def _like(pattern: str, value: str) -> bool:
    """IAM's wildcards are * and ? only; a bracket means itself."""
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), value) is not None


def _in_network(pattern: str, value: str) -> bool:
    return ipaddress.ip_address(value) in ipaddress.ip_network(pattern, strict=False)


OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda pattern, value: pattern == value,
    "StringEqualsIgnoreCase": lambda pattern, value: pattern.lower() == value.lower(),
    "StringLike": _like,
    "ArnEquals": _like,
    "ArnLike": _like,
    "Bool": lambda pattern, value: pattern.lower() == value.lower(),
    "IpAddress": _in_network,
    "NumericEquals": lambda pattern, value: float(pattern) == float(value),
    "NumericLessThan": lambda pattern, value: float(value) < float(pattern),
    "NumericLessThanEquals": lambda pattern, value: float(value) <= float(pattern),
    "NumericGreaterThan": lambda pattern, value: float(value) > float(pattern),
    "NumericGreaterThanEquals": lambda pattern, value: float(value) >= float(pattern),
}
NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
    "NotIpAddress": "IpAddress",
    "NumericNotEquals": "NumericEquals",
}


def _texts(values: Any) -> list[str]:
    """A condition's values as text: IAM takes one or a list, and true for "true"."""
    return [
        str(v).lower() if isinstance(v, bool) else str(v) for v in (values if isinstance(values, list) else [values])
    ]


def fulfilled(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    """Whether all conditions hold.

    A key that the request does not carry makes an operator false, a negated or …IfExists one true.
    Raises NotImplementedError for an operator that is not known here: silence would be a wrong answer.
    """
    present = {key.lower(): value for key, value in context.items()}
    for name, wanted in conditions.items():
        operator = name.removesuffix("IfExists")
        for key, values in wanted.items():
            value = present.get(key.lower())
            if operator == "Null":
                if (value is None) != (_texts(values)[0] == "true"):
                    return False
                continue
            base = NEGATED.get(operator, operator)
            if base not in OPERATORS:
                raise NotImplementedError(f"the condition operator {name} is not known to the local AWS")
            if value is None:
                if operator in NEGATED or name.endswith("IfExists"):
                    continue
                return False
            matches = any(OPERATORS[base](text, value) for text in _texts(values))
            if matches == (operator in NEGATED):
                return False
    return True


S3_LIST_KEYS = {"prefix": "s3:prefix", "delimiter": "s3:delimiter", "max-keys": "s3:max-keys"}
"""Condition keys that a listing carries, by query parameter. Source:
https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html#amazons3-policy-keys"""


def s3_list_keys(action: str) -> dict[str, str]:
    """The condition keys of the listing that is being answered; none for any other action."""
    if not action.startswith("s3:List") or not flask.has_request_context():
        return {}
    query = flask.request.args
    return {key: query[parameter] for parameter, key in S3_LIST_KEYS.items() if parameter in query}


def apply(patch: Patcher) -> None:
    original = IAMPolicyStatement.is_action_permitted

    def is_action_permitted(
        self: Any,
        action: str,
        resource: str = "*",
        principal: str | None = None,
        incoming_condition_values: dict[str, str] | None = None,
    ) -> PermissionResult:
        context = {
            "aws:SecureTransport": "true" if secure_transport.get() else "false",
            **s3_list_keys(action),
            **(incoming_condition_values or {}),
        }
        if not fulfilled(self._statement.get("Condition") or {}, context):
            return PermissionResult.NEUTRAL
        if principal and not self._check_principal(principal):
            return PermissionResult.NEUTRAL
        unconditional = type(self)({k: v for k, v in self._statement.items() if k != "Condition"})
        return original(unconditional, action, resource, principal, None)

    patch.setattr(IAMPolicyStatement, "is_action_permitted", is_action_permitted)
