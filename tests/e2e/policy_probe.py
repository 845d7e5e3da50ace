"""Runs on the host, with the server's own role: tries calls that its policy grants and calls that it must not grant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import boto3
from botocore.exceptions import ClientError

bucket, endpoint = sys.argv[1:3]


def client(service: str) -> Any:
    return boto3.client(service, endpoint_url=endpoint, region_name="eu-central-1")  # type: ignore[call-overload]


def answer(call: Callable[[], object]) -> str:
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "ok"


s3 = client("s3")
BIG = {"Bucket": bucket, "Key": "artifacts/probe-big"}


def multipart() -> None:
    upload = s3.create_multipart_upload(**BIG)["UploadId"]
    part = s3.upload_part(**BIG, UploadId=upload, PartNumber=1, Body=b"x" * 5 * 1024 * 1024)
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    s3.complete_multipart_upload(**BIG, UploadId=upload, MultipartUpload=parts)
    s3.delete_object(**BIG)


CALLS: dict[str, Callable[[], object]] = {
    "put": lambda: s3.put_object(Bucket=bucket, Key="artifacts/probe", Body=b"x"),
    "get": lambda: s3.get_object(Bucket=bucket, Key="artifacts/probe"),
    "list": lambda: s3.list_objects_v2(Bucket=bucket, Prefix="artifacts/"),
    "delete": lambda: s3.delete_object(Bucket=bucket, Key="artifacts/probe"),
    "multipart": multipart,
    "put elsewhere": lambda: s3.put_object(Bucket=bucket, Key="other/probe", Body=b"x"),
    "list elsewhere": lambda: s3.list_objects_v2(Bucket=bucket, Prefix="other/"),
    "policy": lambda: s3.get_bucket_policy(Bucket=bucket),
    "buckets": s3.list_buckets,
    "instances": client("ec2").describe_instances,
    "secret": lambda: client("secretsmanager").get_secret_value(SecretId="mlflow-e2e/database"),
}
print("RESULT", json.dumps({name: answer(call) for name, call in CALLS.items()}))
