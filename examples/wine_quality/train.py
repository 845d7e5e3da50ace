"""Predict the quality of red wine with an ElasticNet: train it, log the run, register the model.

The tutorials' example. Where it logs to is said by MLFLOW_TRACKING_URI and the login beside it, which are in the
stack's client.env. Everything that was given is checked before anything is logged.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from sklearn.linear_model import ElasticNet
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from tracking import ProblemError, cause, connect, patience, shown, tracking_uri

DATA = "https://archive.ics.uci.edu/ml/machine-learning-databases/wine-quality/winequality-red.csv"
SAMPLE = Path(__file__).with_name("winequality-sample.csv")
TARGET = "quality"
PACKAGES = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")
"""What the model needs wherever it is loaded."""

MINIMUM_ROWS = 8
"""A quarter of the rows tests the model, and R² needs two of them."""

FETCH_TIMEOUT = (10.0, 60.0)
"""Seconds to connect to where the data is, and of silence while it arrives."""


@dataclass(frozen=True)
class Result:
    """What one training came to; the metrics are in points of quality (rmse, mae) and without a unit (r2)."""

    run_id: str
    model_uri: str
    metrics: dict[str, float]


def penalty(text: str) -> float:
    """Parse alpha. Raises: ArgumentTypeError unless it is a finite number of 0 or more."""
    value = number(text)
    if value is None or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} was given, a number of 0 or more is allowed")
    return value


def share(text: str) -> float:
    """Parse l1_ratio. Raises: ArgumentTypeError unless it is a number from 0 to 1."""
    value = number(text)
    if value is None or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given, a number from 0 to 1 is allowed")
    return value


def number(text: str) -> float | None:
    """Return the finite number that `text` is, else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def seed(text: str) -> int:
    """Parse the seed. Raises: ArgumentTypeError unless NumPy can start from it."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} was given, a whole number from 0 to {2**32 - 1} is allowed")
    return int(text)


def name(text: str) -> str:
    """Parse the name of an experiment. Raises: ArgumentTypeError when it is empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("nothing was given, a name is needed")
    return text.strip()


def model_name(text: str) -> str:
    """Parse the name of a registered model. Raises: ArgumentTypeError when MLflow or its URIs cannot take it."""
    if not text.strip() or any(sign in text for sign in "/:@"):
        raise argparse.ArgumentTypeError(f"{text!r} was given, a name without '/', ':' and '@' is allowed")
    return text.strip()


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--alpha", type=penalty, default=0.5, help="strength of the penalty, 0 or more")
    parser.add_argument("--l1-ratio", "--l1_ratio", type=share, default=0.5, help="share of L1 in it, from 0 to 1")
    parser.add_argument("--data", default=DATA, help="URL or path of the CSV, separated by semicolons")
    parser.add_argument("--experiment", type=name, default="wine_quality", help="experiment that the run goes to")
    parser.add_argument("--registered-model-name", type=model_name, default="ElasticnetWineModel", help="as it says")
    parser.add_argument("--seed", type=seed, default=40, help="of the split into training and test rows")
    return parser


def read(source: str) -> bytes:
    """Return the content of a URL (http, https) or of a file.

    Raises: ProblemError with what was tried, why it failed, and how to give the data otherwise.
    """
    if source.startswith(("http://", "https://")):
        try:
            response = requests.get(source, timeout=FETCH_TIMEOUT)
            response.raise_for_status()
        except requests.RequestException as error:
            raise ProblemError(
                f"Failed to fetch the data from {shown(source)}: {cause(error)}. Fetch it on a machine that can and "
                f"give the file: `--data winequality-red.csv`; or try this example's small file: `--data {SAMPLE}`."
            ) from error
        return response.content
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProblemError(
            f"Failed to read the data from {source!r} in {Path.cwd()}: {reason}. Give a file that can be read, or a "
            f"URL (http:// or https://) as `--data`; this example has a small file: `--data {SAMPLE}`."
        ) from error


def parse(content: bytes, source: str) -> pd.DataFrame:
    """Return the table of numbers (float64) in `content`; `source` is for messages.

    Raises: ProblemError when it is no table separated by semicolons, has no column `quality`, holds something other
    than numbers, or has fewer than 8 rows.
    """

    def malformed(what: str) -> ProblemError:
        return ProblemError(
            f"Failed to use the data of {shown(source)}: {what}. It must be a CSV separated by ';' with a first line "
            f"of names, numbers only, and a column {TARGET!r} to predict; give another one as `--data`."
        )

    try:
        table = pd.read_csv(io.BytesIO(content), sep=";", skipinitialspace=True)
    except ValueError as error:
        raise malformed(cause(error)) from error
    table.columns = table.columns.str.strip()
    if TARGET not in table.columns:
        raise malformed(f"it has no column {TARGET!r}, only {', '.join(table.columns)[:300]!r}")
    if len(table.columns) < 2:
        raise malformed(f"it has no column besides {TARGET!r} to predict from")
    # A row with more fields than names would silently shift all columns by one.
    if not isinstance(table.index, pd.RangeIndex):
        raise malformed("its rows have more fields than its first line has names")
    if len(table) < MINIMUM_ROWS:
        raise malformed(f"it has {len(table)} rows, at least {MINIMUM_ROWS} are needed")
    numbers = table.apply(pd.to_numeric, errors="coerce").astype("float64")
    wrong = np.argwhere(~np.isfinite(numbers.to_numpy()))
    if len(wrong):
        row, column = wrong[0]
        raise malformed(
            f"row {row + 1} has {str(table.iat[row, column])[:40]!r} as {table.columns[column]!r} "
            f"({len(wrong)} such values in all)"
        )
    return numbers


def train(table: pd.DataFrame, options: argparse.Namespace) -> Result:
    """Train on three quarters of the table, test on the rest, log the run and register the model.

    Raises: MlflowException or OSError when any of it cannot be stored; the run is then marked as failed.
    """
    train_rows, test_rows = train_test_split(table, test_size=0.25, random_state=options.seed)
    features = train_rows.drop(columns=TARGET)
    model = ElasticNet(alpha=options.alpha, l1_ratio=options.l1_ratio, random_state=options.seed)
    model.fit(features, train_rows[TARGET])
    predicted = model.predict(test_rows.drop(columns=TARGET))
    metrics = {
        "rmse": float(root_mean_squared_error(test_rows[TARGET], predicted)),
        "mae": float(mean_absolute_error(test_rows[TARGET], predicted)),
        "r2": float(r2_score(test_rows[TARGET], predicted)),
    }
    mlflow.set_experiment(options.experiment)
    with mlflow.start_run() as run:
        mlflow.log_params(
            {
                "alpha": options.alpha,
                "l1_ratio": options.l1_ratio,
                "seed": options.seed,
                "data": shown(options.data),
                "rows": len(table),
            }
        )
        mlflow.log_metrics(metrics)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(features, model.predict(features)),
            input_example=features.head(3),
            # Known here; to find them out, MLflow would load the model in another process, which takes seconds.
            pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
            registered_model_name=options.registered_model_name,
        )
    uri = f"models:/{options.registered_model_name}/{logged.registered_model_version}"
    return Result(run_id=run.info.run_id, model_uri=uri, metrics=metrics)


def main(words: Sequence[str] | None = None) -> int:
    """Train by the command line `words`, by default this process's; return the exit status, 0 or 1.

    Raises: SystemExit with status 2 for arguments that are not allowed.
    """
    options = arguments().parse_args(words)
    try:
        uri = tracking_uri()
        table = parse(read(options.data), options.data)
        client = connect()
        with patience():
            experiment = client.get_experiment_by_name(options.experiment)
        if experiment is not None and experiment.lifecycle_stage != "active":
            raise ProblemError(
                f"Failed to use the experiment {options.experiment!r} on {shown(uri)}: it is deleted. Restore it, or "
                "give another one as `--experiment`."
            )
        result = train(table, options)
    except ProblemError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    # An upload by presigned URL fails with an error of requests, which is an OSError.
    except (MlflowException, OSError) as error:
        print(
            f"Error: Failed to log the run on {shown(uri)}: {cause(error)}. Mend that and run the same again; the run "
            "that had begun is marked as failed.",
            file=sys.stderr,
        )
        return 1
    print("Metrics: " + ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    print(f"Run: {result.run_id}")
    print(f"Model: {result.model_uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
