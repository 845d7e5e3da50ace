"""Artifacts from S3, sent on as they arrive: MLflow fetches an object whole before it sends the first byte.

S3's own answer decides what a client gets: the length, and with a Range header the part and 206.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from flask import Response, request
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.server import artifact_router, handlers
from mlflow.server.artifact_router import _get_artifact_repo
from mlflow.store.artifact.s3_artifact_repo import BOTO_TO_MLFLOW_ERROR, S3ArtifactRepository
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.uri import validate_path_is_safe
from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from fastapi import FastAPI

BLOCK = 1 << 20
PATHS = [f"/{api}/2.0/mlflow-artifacts/artifacts/{{artifact_path:path}}" for api in ("api", "ajax-api")]

router = APIRouter()


class Download:
    """An object that S3 has begun to send."""

    def __init__(self, repository: S3ArtifactRepository, path: str, ranges: str | None) -> None:
        """Ask S3 for an object, or for a part of it (RFC 9110, Range).

        Raises: MlflowException when S3 refuses; BotoCoreError when it does not answer.
        """
        bucket, root = repository.parse_s3_compliant_uri(repository.artifact_uri)
        wanted = {"Bucket": bucket, "Key": posixpath.join(root, path), **repository._bucket_owner_params}
        # S3 knows one range per request and takes no other unit; the whole object is always a right answer.
        if ranges and ranges.startswith("bytes=") and "," not in ranges:
            wanted["Range"] = ranges
        try:
            found = repository._get_s3_client().get_object(**wanted)
        except ClientError as error:
            raise refusal(error, path) from error
        self.body = found["Body"]
        self.status = HTTPStatus.PARTIAL_CONTENT if "ContentRange" in found else HTTPStatus.OK
        self.headers = {
            "Content-Type": _guess_mime_type(path),
            "Content-Disposition": artifact_router._content_disposition(posixpath.basename(path)),
            "Content-Length": str(found["ContentLength"]),
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
        }
        if "ContentRange" in found:
            self.headers["Content-Range"] = found["ContentRange"]

    def __iter__(self) -> Iterator[bytes]:
        """Yield the object's bytes; a store that breaks off raises, so that nobody takes a part for the whole."""
        try:
            while block := self.body.read(BLOCK):
                yield block
        finally:
            self.body.close()


class RangeError(MlflowException):
    """The range lies beyond the object's end."""

    def get_http_status_code(self) -> int:
        """Return 416."""
        return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE.value


def refusal(error: ClientError, path: str) -> MlflowException:
    """Return what MLflow would raise for S3's refusal."""
    code = error.response["Error"]["Code"]
    if code in ("InvalidRange", "416"):
        return RangeError(f"The range lies beyond the end of '{path}'.", INVALID_PARAMETER_VALUE)
    message = f"Failed to read '{path}' from the artifact store: {error.response['Error'].get('Message', code)}"
    return MlflowException(message, error_code=BOTO_TO_MLFLOW_ERROR.get(code, INTERNAL_ERROR))


@router.get(PATHS[0])
@router.get(PATHS[1])
async def download_artifact(artifact_path: str, request: Request) -> Any:
    """Answer as MLflow's route of the same path does, at once."""
    if not artifact_router._is_serving_proxied_artifacts():
        return await artifact_router.download_artifact(artifact_path)
    try:
        path = artifact_router._get_workspace_scoped_path(validate_path_is_safe(artifact_path))
        repository = _get_artifact_repo()
        if not isinstance(repository, S3ArtifactRepository):
            return await artifact_router.download_artifact(artifact_path)
        found = await run_in_threadpool(Download, repository, path, request.headers.get("range"))
    except MlflowException as error:
        return JSONResponse(json.loads(error.serialize_as_json()), error.get_http_status_code())
    return StreamingResponse(iter(found), found.status, found.headers)


def install(fastapi: FastAPI) -> None:
    """Put the route before MLflow's, behind the same login, and do the same for the routes of the web interface."""
    fastapi.router.routes[:0] = router.routes
    send_file = handlers._send_artifact

    def send(repository: Any, path: str) -> Response:
        if not isinstance(repository, S3ArtifactRepository):
            return send_file(repository, path)
        found = Download(repository, path, request.headers.get("Range"))
        return Response(iter(found), found.status, found.headers, direct_passthrough=True)

    handlers._send_artifact = send
