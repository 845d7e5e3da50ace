"""Artifacts to S3, sent on part by part while they arrive: MLflow sends nothing before it has the whole body.

The body goes through a file, so that neither a slow client nor a slow store costs memory, and a full disk is told as
such. A part that lies in it is sent at once, beside those that still arrive. Small bodies go as MLflow sends them.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import tempfile
from collections.abc import AsyncIterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpchecksum import DEFAULT_CHECKSUM_ALGORITHM
from mlflow.server import artifact_router
from mlflow.server.artifact_router import _get_artifact_repo
from mlflow.store.artifact.artifact_repo import StreamUploadMixin
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from s3transfer.upload import UploadSubmissionTask
from s3transfer.utils import ReadFileChunk, get_filtered_dict
from starlette.concurrency import run_in_threadpool

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
# boto3's own part size, and its own number of parts at once; here that is for all uploads of a worker together.
PART = 8 << 20
senders = ThreadPoolExecutor(10, "s3-part")


def part_size(number: int) -> int:
    """Return how many bytes the part of a number, from 1 on, has.

    S3 takes 10,000 parts of at most 5 GiB, and objects of 5 TiB; how long a body is, is known at its end only.
    """
    return PART << (number - 1) // 1000


class MultipartUpload:
    """One object on its way to S3, whose parts are read from a growing file."""

    def __init__(self, client: Any, path: Path, target: dict[str, Any], extra: dict[str, Any]) -> None:
        self.client = client
        self.path = path
        self.extra = dict(extra)
        # As boto3's own uploads do, and for every object that a user's arguments do not settle otherwise.
        if client.meta.config.request_checksum_calculation == "when_supported":
            self.extra.setdefault("ChecksumAlgorithm", DEFAULT_CHECKSUM_ALGORITHM)
        self.target = target | {"UploadId": client.create_multipart_upload(**target, **self.extra)["UploadId"]}

    def send(self, number: int, start: int, size: int) -> dict[str, Any]:
        """Send a part and return what S3 has to be told of it at the end."""
        with ReadFileChunk.from_filename(str(self.path), start, size) as body:
            arguments = get_filtered_dict(self.extra, whitelisted_keys=UploadSubmissionTask.UPLOAD_PART_ARGS)
            answer = self.client.upload_part(**self.target, **arguments, PartNumber=number, Body=body)
        part = {"PartNumber": number, "ETag": answer["ETag"]}
        checksum = f"Checksum{self.extra.get('ChecksumAlgorithm', '').upper()}"
        return part | {name: answer[name] for name in [checksum] if name in answer}

    def complete(self, parts: list[dict[str, Any]]) -> None:
        """Make the object appear."""
        arguments = get_filtered_dict(self.extra, whitelisted_keys=UploadSubmissionTask.COMPLETE_MULTIPART_ARGS)
        self.client.complete_multipart_upload(**self.target, **arguments, MultipartUpload={"Parts": parts})

    def abort(self) -> None:
        """Have S3 forget the parts."""
        arguments = get_filtered_dict(self.extra, whitelisted_keys=("RequestPayer", "ExpectedBucketOwner"))
        self.client.abort_multipart_upload(**self.target, **arguments)


def write(file: BinaryIO, block: bytearray) -> None:
    """Write a block to where another thread may read it.

    Raises: OSError when the disk is full.
    """
    file.write(block)
    file.flush()


class S3Uploads(StreamUploadMixin):
    """What MLflow asks a repository for that takes uploads as they come, for one in S3."""

    def __init__(self, repository: S3ArtifactRepository) -> None:
        self.repository = repository

    def log_artifact_from_stream(
        self, stream: BinaryIO, artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Refuse: only Flask's half of MLflow would ask for it, whose route FastAPI's comes before."""
        raise NotImplementedError

    async def log_artifact_from_async_stream(
        self, chunks: AsyncIterable[bytes], artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Store a body.

        Raises: OSError when the disk is full; ClientError, BotoCoreError or Boto3Error when S3 refuses or is away;
        ClientDisconnect when the client has gone. Nothing is left in S3 then.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, artifact_file_name)
            arriving = Arriving(self.repository, path, artifact_path)
            with path.open("wb") as file:
                try:
                    block = bytearray()
                    async for chunk in chunks:
                        block += chunk
                        if len(block) >= BLOCK:
                            await run_in_threadpool(write, file, block)
                            await arriving.grown(len(block))
                            block = bytearray()
                    await run_in_threadpool(write, file, block)
                    await arriving.ended(len(block))
                except BaseException:
                    await arriving.abandoned()
                    raise


class Arriving:
    """A body that arrives in a file, and the upload that begins once there is a whole part of it."""

    def __init__(self, repository: S3ArtifactRepository, path: Path, artifact_path: str | None) -> None:
        self.repository = repository
        self.path = path
        self.artifact_path = artifact_path
        self.size = self.sent = 0
        self.upload: MultipartUpload | None = None
        self.parts: list[Future[dict[str, Any]]] = []

    async def grown(self, size: int) -> None:
        """Send the parts that have become whole with `size` bytes more."""
        self.size += size
        while self.size - self.sent >= (whole := part_size(len(self.parts) + 1)):
            await self.send(whole)

    async def send(self, size: int) -> None:
        """Send the next bytes as a part, unless one before it has failed."""
        if self.upload is None:
            self.upload = await run_in_threadpool(self.begin)
        for part in self.parts:
            if part.done():
                part.result()
        self.parts.append(senders.submit(self.upload.send, len(self.parts) + 1, self.sent, size))
        self.sent += size

    def begin(self) -> MultipartUpload:
        """Begin the upload, under the key and with the arguments that MLflow chooses for the file."""
        calls: list[dict[str, Any]] = []
        uri = self.repository.parse_s3_compliant_uri(self.repository.artifact_uri)
        bucket, key = uri[0], posixpath.join(uri[1], self.artifact_path or "", self.path.name)
        noting = SimpleNamespace(upload_file=lambda **call: calls.append(call))
        self.repository._upload_file(s3_client=noting, local_file=str(self.path), bucket=bucket, key=key)
        [call] = calls
        target = {"Bucket": call["Bucket"], "Key": call["Key"]}
        return MultipartUpload(self.repository._get_s3_client(), self.path, target, call["ExtraArgs"])

    async def ended(self, size: int) -> None:
        """Store the object, with the last `size` bytes."""
        await self.grown(size)
        if self.upload is None:
            await run_in_threadpool(self.repository.log_artifact, str(self.path), self.artifact_path)
            return
        if self.size > self.sent:
            await self.send(self.size - self.sent)
        parts = await asyncio.gather(*map(asyncio.wrap_future, self.parts))
        await run_in_threadpool(self.upload.complete, parts)

    async def abandoned(self) -> None:
        """Wait for what is being sent, which reads the file, and have S3 forget all of it."""
        for part in self.parts:
            part.cancel()
        await run_in_threadpool(wait, self.parts)
        if self.upload:
            try:
                await run_in_threadpool(self.upload.abort)
            except (BotoCoreError, ClientError) as error:
                # A rule of the bucket's is there for these: S3 forgets them after some days.
                logger.warning("The parts of an upload that failed stay in the artifact store: %r", error)


def install() -> None:
    """Have MLflow's route for uploads use it."""

    def found() -> Any:
        repository = _get_artifact_repo()
        return S3Uploads(repository) if isinstance(repository, S3ArtifactRepository) else repository

    artifact_router._get_artifact_repo = found
