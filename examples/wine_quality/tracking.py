"""What training and serving share: which tracking server is meant, whether it answers, and why it does not."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""The variables by which MLflow's client logs in."""

CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
CLIENT_ENV = "the stack's client.env says it: `set -a; . .mlflow_aws/<stack>/client.env; set +a`"
IN_CONTAINER = "for a container: `--env-file .mlflow_aws/<stack>/client.env`"


class ProblemError(Exception):
    """Something that the user must know or mend; its text says what failed, on what, why, and the next step."""


def cause(error: BaseException, most: int = 300) -> str:
    """Return why a request failed, on one line.

    `most` is the length in characters at which it is cut, 300 by default. Raises nothing.
    """
    text = " ".join(str(error).split())
    # requests and MLflow wrap the reason in the names of the classes that it went through.
    if wrapped := re.search(r"\(Caused by \w+\((.*)\)\)", text):
        text = wrapped[1].strip("\"'")
    text = re.sub(r"^<?[\w.]+(?: object at 0x[0-9a-f]+>|\(host=[^)]*\)): ", "", text)
    # A login may be part of an address.
    text = re.sub(r"://[^/@\s]+@", "://", text)
    return text[:most].rstrip(". ")


def shown(url: str) -> str:
    """Return an address without the login that may be in it."""
    return re.sub(r"://[^/@]+@", "://", url)


def tracking_uri() -> str:
    """Return the address of the tracking server, from MLFLOW_TRACKING_URI.

    Raises: ProblemError when it is missing or no http(s) address, or when the CA file that belongs to it is not there.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        raise ProblemError(
            f"MLFLOW_TRACKING_URI is not set: it must be the address of the tracking server, and {CLIENT_ENV}; "
            f"{IN_CONTAINER}."
        )
    try:
        parts = urlsplit(uri)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise ProblemError(
            f"MLFLOW_TRACKING_URI is {shown(uri)!r}: it must be the address of a tracking server, http://… or "
            f"https://…, and {CLIENT_ENV}."
        )
    certificate = os.environ.get(CERTIFICATE)
    # MLflow 3.17 takes an empty name for "verify nothing", and would send the login to anybody.
    if certificate == "":
        raise ProblemError(
            f"{CERTIFICATE} is set and empty: it must be the CA file of the server, ca.pem beside client.env, or not "
            f"be set at all, where a public CA signed the certificate: `unset {CERTIFICATE}`."
        )
    if certificate is not None and not Path(certificate).is_file():
        raise ProblemError(
            f"{CERTIFICATE} is {certificate!r}, and no such file is here: it must be the CA file of the server, ca.pem "
            "beside client.env; a container needs it at the same path: `-v CA_FILE:CA_FILE:ro`."
        )
    return uri


@contextlib.contextmanager
def patience(retries: int = 1, seconds: int = 10) -> Iterator[None]:
    """Let MLflow's client wait `seconds` for an answer and ask again `retries` times, unless the user has set these.

    Its own defaults, 120 seconds and 7 times, are a quarter of an hour of silence before a firewall is suspected.
    """
    ours = {name: str(value) for name, value in ((RETRIES, retries), (TIMEOUT, seconds)) if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def connect() -> MlflowClient:
    """Return a client of the tracking server that MLFLOW_TRACKING_URI names, which has answered and knows the login.

    Raises: ProblemError when the settings are wrong, the server does not answer, or it refuses the login.
    """
    uri = tracking_uri()
    client = MlflowClient()
    with patience():
        try:
            client.search_experiments(max_results=1)
        except MlflowException as error:
            if error.get_http_status_code() in (401, 403):
                raise ProblemError(
                    f"Failed to log in to {shown(uri)}: {cause(error)}. Set MLFLOW_TRACKING_USERNAME and "
                    f"MLFLOW_TRACKING_PASSWORD; {CLIENT_ENV}; {IN_CONTAINER}."
                ) from error
            raise ProblemError(
                f"Failed to reach the tracking server on {shown(uri)}: {cause(error)}. Check MLFLOW_TRACKING_URI, "
                f"{CERTIFICATE} for a private CA, and that this machine is in mlflow_client_cidrs."
            ) from error
    return client
