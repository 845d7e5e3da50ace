"""What ECR says of an image: its digest is the manifest's, its size that of its layers, and no scan invents findings.

moto makes up a digest for what PutImage brings, takes the size of the configuration for that of the image, and reports
a vulnerability that does not exist. Nothing is scanned here: the finding's text says so.

Sources: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ImageDetail.html
https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from moto.ecr.models import ECRBackend, Image

from local_aws.patching import Patcher

NOT_SCANNED = "The local AWS scans nothing: this is not the result of a scan."


def apply(patch: Patcher) -> None:
    findings = ECRBackend.describe_image_scan_findings

    def _create_digest(self: Image) -> None:
        self._image_digest = "sha256:" + hashlib.sha256(self.image_manifest.encode()).hexdigest()

    def get_image_size_in_bytes(self: Image) -> int | None:
        manifest = json.loads(self.image_manifest)
        if "layers" not in manifest:
            return None
        return sum(int(layer["size"]) for layer in manifest["layers"])

    def describe_image_scan_findings(self: ECRBackend, *args: Any, **kwargs: Any) -> dict[str, Any]:
        answer: dict[str, Any] = findings(self, *args, **kwargs)
        answer["imageScanStatus"] = {"status": "COMPLETE", "description": NOT_SCANNED}
        answer["imageScanFindings"] |= {"findings": [], "findingSeverityCounts": {}}
        return answer

    def scan_status(self: Image) -> dict[str, str] | None:
        return {"status": "COMPLETE", "description": NOT_SCANNED} if self.last_scan else None

    patch.setattr(Image, "_create_digest", _create_digest)
    patch.setattr(Image, "get_image_size_in_bytes", get_image_size_in_bytes)
    patch.setattr(Image, "image_scan_status", property(scan_status), raising=False)
    patch.setattr(ECRBackend, "describe_image_scan_findings", describe_image_scan_findings)
