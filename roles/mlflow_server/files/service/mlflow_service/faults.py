"""What a client is told when the database, the artifact store or the disk fails: 503 or 507, and whose fault it is."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from fastapi.responses import JSONResponse
from flask import Response
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from sqlalchemy.exc import OperationalError, TimeoutError

from mlflow_service.outages import DATABASE_AWAY

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from flask import Flask
    from mlflow.server.auth.entities import User

logger = logging.getLogger(__name__)


def answer(error: Exception) -> tuple[HTTPStatus, str, str]:
    """Return status, MLflow's error code and message for an error that came from below MLflow.

    Raises: the error itself, if it is none of those.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HTTPStatus.INSUFFICIENT_STORAGE, "RESOURCE_EXHAUSTED", "The tracking server's disk is full."
    if isinstance(error, BotoCoreError):
        message = f"The artifact store does not answer ({type(error).__name__}). Try again later."
        return HTTPStatus.SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", message
    if isinstance(error, (Boto3Error, ClientError)):
        return HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", f"The artifact store refused: {error}"
    if isinstance(error, (OperationalError, TimeoutError)):
        return HTTPStatus.SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", DATABASE_AWAY
    raise error


def install(fastapi: FastAPI, flask: Flask) -> None:
    """Let both halves of the server answer so."""

    def body(code: str, message: str) -> str:
        return json.dumps({"error_code": code, "message": message})

    async def by_fastapi(request: Request, error: Exception) -> JSONResponse:
        status, code, message = answer(error)
        logger.error("%s %r", message, error)
        return JSONResponse(json.loads(body(code, message)), status)

    def by_flask(error: Exception) -> Response:
        status, code, message = answer(error)
        logger.error("%s %r", message, error)
        return Response(body(code, message), status, mimetype="application/json")

    for kind in (OSError, BotoCoreError, Boto3Error, ClientError, OperationalError, TimeoutError):
        fastapi.add_exception_handler(kind, by_fastapi)
        flask.register_error_handler(kind, by_flask)


def tell_a_dead_database_from_a_wrong_password() -> None:
    """Answer 503 where MLflow's FastAPI half answers 401 to everybody while the users' database is away.

    A client gives up on 401, and tries again on 503.
    """
    from mlflow.server import auth

    cause: ContextVar[Exception | None] = ContextVar("cause", default=None)
    check: Callable[[str, str], User | None] = auth._authenticate_cached
    authenticate: Callable[[Any], User | None] = auth._authenticate_fastapi_request

    def checked(username: str, password: str) -> User | None:
        try:
            return check(username, password)
        except Exception as error:
            cause.set(error)
            raise

    def authenticated(request: Any) -> User | None:
        cause.set(None)
        user = authenticate(request)
        error = cause.get()
        if user is None and error is not None:
            logger.error("The users' database does not answer: %r", error)
            raise MlflowException(DATABASE_AWAY, TEMPORARILY_UNAVAILABLE)
        return user

    auth._authenticate_cached = checked
    auth._authenticate_fastapi_request = authenticated
