"""Lay out the files of MLflow's interface for nginx: <release>/web/static-files, each with a compressed sibling.

Run with the Python of a release, once, while it is built: MLflow then reads none of them, and nothing compresses them
for each visitor anew.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TARGET = Path(sys.prefix) / "web/static-files"
COMPRESSIBLE = {".cjs", ".css", ".eot", ".html", ".ico", ".js", ".json", ".mjs", ".svg", ".ttf", ".txt"}
# Below that, the answer fits into one packet either way.
SMALLEST = 1024


def source() -> Path:
    """Return MLflow's directory of built files, without importing MLflow, which takes seconds."""
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise SystemExit(f"There is no MLflow in {sys.prefix}; its environment is not complete.")
    return Path(spec.origin).parent / "server/js/build"


def compress(path: Path) -> None:
    """Write <path>.gz with the times of the original, if it is smaller."""
    original = path.read_bytes()
    compressed = gzip.compress(original, mtime=0)
    if len(compressed) < len(original):
        sibling = path.with_name(path.name + ".gz")
        sibling.write_bytes(compressed)
        shutil.copystat(path, sibling)


def main() -> None:
    """Lay out all files anew."""
    # nginx is another user than the one who builds.
    os.umask(0o022)
    if TARGET.exists():
        shutil.rmtree(TARGET)
    # Links, because the same bytes are in the environment already.
    shutil.copytree(source(), TARGET, copy_function=os.link)
    files = (path for path in TARGET.rglob("*") if path.is_file() and path.suffix in COMPRESSIBLE)
    # zlib lets other threads run meanwhile.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compress, (path for path in files if path.stat().st_size >= SMALLEST)))


if __name__ == "__main__":
    main()
