"""Call an example's `main` for each case on standard input, in one process: importing MLflow is what takes the time.

Usage: python ask.py train|serve < CASES, where CASES is a JSON list of {"words": [...], "environment": {...}}; prints a
JSON list of {"status", "output"}. It runs with the Python that has MLflow, in the folder of the example.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from typing import Any


def ask(program: Any, words: list[str], environment: dict[str, str]) -> dict[str, object]:
    """Return the exit status and what was printed."""
    before = dict(os.environ)
    os.environ.update(environment)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = program.main(words)
            except SystemExit as end:
                status = end.code
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {"status": status, "output": " ".join(said.getvalue().split())}


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    chosen = importlib.import_module({"train": "train", "serve": "serve.__main__"}[sys.argv[1]])
    print(json.dumps([ask(chosen, case["words"], case["environment"]) for case in json.load(sys.stdin)]))
