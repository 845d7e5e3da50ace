"""A data scientist: a Python with the stock client, and nothing but client.env."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from stack import ROOT, Control

WINE = ROOT / "examples/wine_quality"


def run(control: Control, python: Path, *words: str | Path) -> str:
    """Run a program of the stock client's Python, and return what it printed."""
    done = subprocess.run(
        [python, *words],
        env=control.client_environment(),
        cwd=control.directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def client(control: Control, python: Path, *words: str) -> dict[str, Any]:
    """Run client.py, and return what it saw."""
    said = run(control, python, Path(__file__).with_name("client.py"), *words)
    return dict(json.loads(said.rpartition("RESULT ")[2]))


def wine(control: Control, python: Path) -> None:
    """Train the tutorials' model, register it, load it from the registry and ask it about every row."""
    rows = WINE / "winequality-sample.csv"
    said = run(control, python, WINE / "train.py", "--data", rows, "--alpha", "0.1")
    (model,) = re.findall(r"^Model: (models:/ElasticnetWineModel/\d+)$", said, re.MULTILINE)
    predict = (
        "import sys, mlflow, pandas; rows = pandas.read_csv(sys.argv[2], sep=';').astype('float64'); "
        "print('QUALITIES', *mlflow.pyfunc.load_model(sys.argv[1]).predict(rows.drop(columns='quality')))"
    )
    said = run(control, python, "-c", predict, model, rows)
    qualities = [float(word) for word in said.rpartition("QUALITIES ")[2].split()]
    assert len(qualities) == 200 and len(set(qualities)) > 100 and 3 < min(qualities) <= max(qualities) < 9, qualities
