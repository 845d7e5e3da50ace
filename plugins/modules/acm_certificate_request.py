#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: acm_certificate_request
short_description: Requests a certificate from ACM, to be proved by a DNS record
version_added: 0.1.0
description:
  - Requests a public certificate for one domain name, and returns the DNS records that prove it. Writing them is not this
    module's business.
  - A certificate for the same domain name that ACM has issued, or that still waits for its proof, is the same one when it
    carries all of O(tags). One that has failed is not - the request is made anew.
  - To delete a certificate use M(community.aws.acm_certificate), which imports but does not request.
  - Needs C(acm:ListCertificates), C(acm:ListTagsForCertificate), C(acm:DescribeCertificate), C(acm:RequestCertificate) and
    C(acm:AddTagsToCertificate).
options:
  domain_name:
    description: The name to certify.
    type: str
    required: true
  tags:
    description: Tags by which the certificate is known again. They are set when it is requested.
    type: dict
    required: true
  validation_timeout:
    description:
      - Seconds to wait until ACM has seen the proof.
      - Where it has not by then the module succeeds, and RV(status) says so.
    type: int
    default: 0
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Can run in check mode, and says whether it would request one.
    support: full
  diff_mode:
    description: Shows no difference, a request is the only change.
    support: none
seealso:
  - module: community.aws.acm_certificate
author:
  - The mlops.mlflow_aws founders (@mlops)
"""

EXAMPLES = r"""
- name: Request the certificate
  mlops.mlflow_aws.acm_certificate_request:
    domain_name: mlflow.example.com
    tags:
      mlflow:stack: team
  register: requested

- name: Prove the domain
  amazon.aws.route53:
    zone: example.com
    record: "{{ item.name }}"
    type: "{{ item.type }}"
    value: "{{ item.value }}"
    ttl: 300
    state: present
  loop: "{{ requested.records }}"

- name: Wait until ACM has seen it
  mlops.mlflow_aws.acm_certificate_request:
    domain_name: mlflow.example.com
    tags:
      mlflow:stack: team
    validation_timeout: 1800
  register: requested
  failed_when: requested.status != 'ISSUED'
"""

RETURN = r"""
arn:
  description: The certificate; empty in check mode where there is none yet.
  returned: always
  type: str
  sample: arn:aws:acm:eu-central-1:123456789012:certificate/01234567-89ab-cdef-0123-456789abcdef
status:
  description: V(PENDING_VALIDATION), V(ISSUED), V(FAILED) or V(VALIDATION_TIMED_OUT); empty in check mode where there is none yet.
  returned: always
  type: str
  sample: PENDING_VALIDATION
failure_reason:
  description: ACM's word for why a request has failed, otherwise empty.
  returned: always
  type: str
  sample: CAA_ERROR
records:
  description: The DNS records that prove the domain. ACM renews the certificate by itself as long as they stay.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the record, without the final dot.
      type: str
    type:
      description: Type of the record.
      type: str
    value:
      description: Value of the record.
      type: str
  sample: [{"name": "_a1b2.mlflow.example.com", "type": "CNAME", "value": "_c3d4.acm-validations.aws."}]
"""

import time
from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.amazon.aws.plugins.module_utils.retries import AWSRetry
from ansible_collections.amazon.aws.plugins.module_utils.tagging import (
    ansible_dict_to_boto3_tag_list,
    boto3_tag_list_to_ansible_dict,
)

# Without them ACM lists RSA_2048 alone.
KEY_TYPES = ["RSA_2048", "RSA_3072", "RSA_4096", "EC_prime256v1", "EC_secp384r1", "EC_secp521r1"]
# ACM names the records some seconds after the request.
RECORDS_TIMEOUT = 60
PAUSE = 5


def find(client: Any, domain_name: str, tags: dict[str, str]) -> str:
    """Return the certificate that was requested before, an issued one first; or nothing."""
    pages = client.get_paginator("list_certificates").paginate(
        CertificateStatuses=["ISSUED", "PENDING_VALIDATION"], Includes={"keyTypes": KEY_TYPES}
    )
    found = [
        certificate["CertificateArn"]
        for certificate in pages.build_full_result()["CertificateSummaryList"]
        if certificate["DomainName"] == domain_name and certificate["Type"] == "AMAZON_ISSUED"
    ]
    ours = [arn for arn in found if tags.items() <= tags_of(client, arn).items()]
    ours.sort(key=lambda arn: str(describe(client, arn)["Status"]) != "ISSUED")
    return ours[0] if ours else ""


def tags_of(client: Any, arn: str) -> dict[str, str]:
    answer = client.list_tags_for_certificate(CertificateArn=arn, aws_retry=True)
    return dict(boto3_tag_list_to_ansible_dict(answer["Tags"]))


def describe(client: Any, arn: str) -> dict[str, Any]:
    return dict(client.describe_certificate(CertificateArn=arn, aws_retry=True)["Certificate"])


def records(certificate: dict[str, Any]) -> list[dict[str, str]]:
    """Return the records of a certificate, none as long as ACM has not named all of them."""
    proofs = [option.get("ResourceRecord") for option in certificate.get("DomainValidationOptions", [])]
    if not all(proofs):
        return []
    return [{"name": proof["Name"].rstrip("."), "type": proof["Type"], "value": proof["Value"]} for proof in proofs]


def wait(client: Any, arn: str, timeout: int) -> dict[str, Any]:
    """Return the certificate when its records are known, and issued or failed if @timeout allows."""
    started = time.monotonic()
    while True:
        certificate, waited = describe(client, arn), time.monotonic() - started
        known = bool(records(certificate)) or waited > RECORDS_TIMEOUT
        settled = certificate["Status"] != "PENDING_VALIDATION"
        if settled or (known and waited >= timeout):
            return certificate
        time.sleep(PAUSE)


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "domain_name": {"type": "str", "required": True},
            "tags": {"type": "dict", "required": True},
            "validation_timeout": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    domain_name = module.params["domain_name"].lower()
    tags = {str(key): str(value) for key, value in module.params["tags"].items()}
    # For some seconds ACM does not know what it has only just made.
    retry = AWSRetry.jittered_backoff(retries=5, catch_extra_error_codes=["ResourceNotFoundException"])
    client = module.client("acm", retry_decorator=retry)
    changed, certificate = False, {}
    try:
        arn = find(client, domain_name, tags)
        if not arn:
            changed = True
            if not module.check_mode:
                request = {"DomainName": domain_name, "ValidationMethod": "DNS"}
                boto3_tags = ansible_dict_to_boto3_tag_list(tags)
                arn = client.request_certificate(aws_retry=True, Tags=boto3_tags, **request)["CertificateArn"]
        if arn:
            certificate = wait(client, arn, 0 if module.check_mode else module.params["validation_timeout"])
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"Failed to request a certificate for {domain_name} from ACM")
    module.exit_json(
        changed=changed,
        arn=arn,
        status=certificate.get("Status", ""),
        failure_reason=certificate.get("FailureReason", ""),
        records=records(certificate),
    )


if __name__ == "__main__":
    main()
