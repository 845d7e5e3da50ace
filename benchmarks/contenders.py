"""The servers that are compared, as systemd units of one host, so that they share machine, database and packages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.lab import ACCESS_KEY, DATABASE_NAME, HOST_ADDRESS, Lab, run
from local_aws.engine import File, put_files
from tools.console import ROOT

VERSION = "3.17.2"
LOCK = ROOT / f"roles/mlflow_server/files/requirements/mlflow-{VERSION}.txt"
FOLDER = "/opt/bench"
PYTHON = "/opt/mlflow/current/bin/python"
SOCKET = "/run/bench-open/open.sock"
UNIT = "/etc/systemd/system/mlflow.service"
# Those of the role come last, so that the reader's eye ends on them.
TITLES = {
    "tutorial, SQLite": "`mlflow server -h 127.0.0.1` with its defaults (4 workers), SQLite",
    "tutorial, PostgreSQL": "the same with `--backend-store-uri postgresql+psycopg2://…` on the same PostgreSQL",
    "bare": "uvicorn with uvloop and httptools, the role's packages and number of workers, loopback, no TLS, no login",
    "role, no login": "the role's unit and nginx configuration, copied, without basic-auth",
    "role": "what the role sets up: nginx, TLS, HTTP/1.1, basic-auth; hardened unit on a Unix socket",
}


def constraints() -> str:
    """Return the lock's versions without its hashes, so that the tutorial runs the same code."""
    return "\n".join(re.findall(r"^([^\s#][^\\\n]*?)\s*\\?$", LOCK.read_text(), flags=re.MULTILINE)) + "\n"


def unit(command: str, *, folder: str = FOLDER, environment: str = "", user: str = "root") -> str:
    """Return a plain unit."""
    lines = ["[Service]", f"User={user}", f"WorkingDirectory={folder}", f"ExecStart={command}"]
    if environment:
        lines += [f"EnvironmentFile={name}" for name in environment.split()]
    return "\n".join([*lines, "Restart=always", "TimeoutStopSec=30", ""])


def quoted(variables: dict[str, str]) -> str:
    """Return variables as systemd reads them; none of ours holds a quote."""
    return "".join(f'{name}="{value}"\n' for name, value in variables.items())


def database_url(name: str) -> str:
    """Return the address of a database, with the same protection that the role uses."""
    ca = "/etc/mlflow/database-ca.pem"
    return f"postgresql+psycopg2://mlflow@{DATABASE_NAME}:5432/{name}?sslmode=verify-full&sslrootcert={ca}"


def install_tutorial(lab: Lab) -> None:
    """Install what `pip install mlflow boto3 psycopg2-binary` would, in the lock's versions and nothing else.

    Copied, not linked: memory that two environments map from one file would be shared out between them.
    """
    put_files(lab.host, [File(f"{FOLDER}/constraints.txt", constraints().encode())])
    script = f"""
    set -e
    uv=$(ls -d /opt/mlflow/uv-*/bin/uv | head -n 1)
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
    $uv venv -q --python /usr/bin/python3 {FOLDER}/tutorial
    $uv pip install -q --python {FOLDER}/tutorial/bin/python --link-mode copy --compile-bytecode \
      -c {FOLDER}/constraints.txt mlflow=={VERSION} boto3 psycopg2-binary
    """
    run(lab.host, ["sh", "-s"], "install the tutorial's packages", script)


def second_nginx(configuration: str) -> str:
    """Return the role's nginx configuration for another server on other ports."""
    for old, new in (
        ("unix:/run/mlflow/mlflow.sock", f"unix:{SOCKET}"),
        ("listen 443", "listen 8443"),
        ("listen [::]:443", "listen [::]:8443"),
        ("listen 80", "listen 8080"),
        ("listen [::]:80", "listen [::]:8080"),
        ("/run/nginx.pid", "/run/bench-nginx.pid"),
        ("/var/log/nginx/access.log", "/var/log/nginx/bench-access.log"),
        ("/var/log/nginx/error.log", "/var/log/nginx/bench-error.log"),
    ):
        if old not in configuration:
            raise ValueError(f"nginx's configuration has no {old!r}: benchmarks/contenders.py must follow the role")
        configuration = configuration.replace(old, new)
    return configuration


def without_login(text: str) -> str:
    """Return the role's unit for another server: same hardening and options, no authentication, a socket of its own."""
    for pattern, new in (
        (r"(?m)^(Requires|After|Sockets)=mlflow\.socket", r"\1=bench-open.socket"),
        (r"(?m)^ExecStartPre=.*\n", ""),
        (
            r"(?m)^(EnvironmentFile=.*)$",
            rf"\1\nEnvironmentFile={FOLDER}/open.env\nUnsetEnvironment=MLFLOW_AUTH_CONFIG_PATH",
        ),
    ):
        text, count = re.subn(pattern, new, text)
        if count == 0:
            raise ValueError(f"mlflow.service has no {pattern!r}: benchmarks/contenders.py must follow the role")
    return text


def own_socket(text: str) -> str:
    """Return the role's unit of the socket for another server."""
    if "/run/mlflow/mlflow.sock" not in text:
        raise ValueError("mlflow.socket has another path: benchmarks/contenders.py must follow the role")
    return text.replace("/run/mlflow/mlflow.sock", SOCKET)


def one_worker(text: str) -> str:
    """Return the role's unit with one worker, for its memory."""
    text, count = re.subn(r"--workers \d+", "--workers 1", text)
    if count != 1:
        raise ValueError("mlflow.service names no number of workers: benchmarks/contenders.py must follow the role")
    text = re.sub(r"(?m)^(Requires|After|Sockets)=mlflow\.socket.*\n", "", text)
    return text.replace("/bin/gunicorn ", "/bin/gunicorn --bind 127.0.0.1:5105 ")


def workers_of(lab: Lab) -> int:
    """Return the role's number of workers."""
    found = re.search(r"--workers (\d+)", run(lab.host, ["cat", UNIT], "read mlflow.service"))
    return int(found.group(1)) if found else 1


def set_up(lab: Lab) -> None:
    """Write the units of all contenders; nothing is started."""
    run(lab.host, ["mkdir", "-p", f"{FOLDER}/sqlite", f"{FOLDER}/postgresql"], "make directories")
    install_tutorial(lab)
    for name in ("bench_tutorial", "bench_bare", "bench_open"):
        statement = f'CREATE DATABASE "{name}" OWNER mlflow'
        command = ["psql", "-h", "/var/run/postgresql", "-U", "rdsadmin", "-d", "postgres", "-c", statement]
        run(lab.database, command, f"create the database {name}")
    service = run(lab.host, ["cat", UNIT], "read mlflow.service")
    socket = run(lab.host, ["cat", UNIT.replace(".service", ".socket")], "read mlflow.socket")
    nginx = run(lab.host, ["cat", "/etc/nginx/nginx.conf"], "read nginx's configuration")
    mlflow = f"{FOLDER}/tutorial/bin/mlflow server -h 127.0.0.1"
    uvicorn = (
        f"{PYTHON} -m uvicorn --host 127.0.0.1 --port 5104 --workers {workers_of(lab)} --loop uvloop --http httptools "
        "--no-access-log --timeout-worker-healthcheck 60 mlflow.server.fastapi_app:app"
    )
    files = {
        f"{FOLDER}/postgresql.env": quoted({"PGPASSWORD": lab.passwords["owner"]}),
        f"{FOLDER}/bare.env": quoted({"_MLFLOW_SERVER_FILE_STORE": database_url("bench_bare")}),
        f"{FOLDER}/open.env": quoted({"_MLFLOW_SERVER_FILE_STORE": database_url("bench_open")}),
        f"{FOLDER}/nginx.conf": second_nginx(nginx),
    }
    unit_folder = "/etc/systemd/system"
    role_env = "/etc/mlflow/mlflow.env"
    files |= {
        f"{unit_folder}/bench-sqlite.service": unit(f"{mlflow} -p 5101", folder=f"{FOLDER}/sqlite"),
        f"{unit_folder}/bench-postgresql.service": unit(
            f"{mlflow} -p 5102 --backend-store-uri {database_url('bench_tutorial')}",
            folder=f"{FOLDER}/postgresql",
            environment=f"{FOLDER}/postgresql.env",
        ),
        f"{unit_folder}/bench-bare.service": unit(
            uvicorn, folder="/var/lib/mlflow", environment=f"{role_env} {FOLDER}/bare.env", user="mlflow"
        ),
        f"{unit_folder}/bench-open.socket": own_socket(socket),
        f"{unit_folder}/bench-open.service": without_login(service),
        f"{unit_folder}/bench-one.service": one_worker(service),
        f"{unit_folder}/bench-nginx.service": unit(f"/usr/sbin/nginx -c {FOLDER}/nginx.conf -g 'daemon off;'"),
    }
    put_files(lab.host, [File(path, text.encode(), 0o600) for path, text in files.items()])
    run(lab.host, ["systemctl", "daemon-reload"], "reload systemd")
    for name in ("bench_bare", "bench_open"):
        script = f'PGPASSWORD={lab.passwords["owner"]} {PYTHON} -m mlflow db upgrade "{database_url(name)}"'
        run(lab.host, ["sh", "-s"], f"make the schema in {name}", script)
    put_files(lab.host, [File(f"{FOLDER}/measure.py", (Path(__file__).parent / "measure.py").read_bytes())])
    bundle = "cat /etc/mlflow/tls/ca.pem /etc/mlflow/artifact-store-ca.pem >" + f"{FOLDER}/ca.pem"
    run(lab.host, ["sh", "-c", bundle], "collect the authorities")


def targets(lab: Lab) -> dict[str, dict[str, Any]]:
    """Return what measure.py must know of each contender."""
    tls = {"ca": f"{FOLDER}/ca.pem"}
    login = {"user": "admin", "password": lab.passwords["admin"]}
    found: dict[str, dict[str, Any]] = {
        "tutorial, SQLite": {"url": "http://localhost:5101", "units": ["bench-sqlite"]},
        "tutorial, PostgreSQL": {"url": "http://localhost:5102", "units": ["bench-postgresql"]},
        "bare": {"url": "http://localhost:5104", "units": ["bench-bare"]},
        "role, no login": {"url": f"https://{HOST_ADDRESS}:8443", "units": ["bench-open", "bench-nginx"], **tls},
        "role": {
            "url": f"https://{HOST_ADDRESS}",
            "units": ["mlflow", "nginx"],
            # As the role restarts it.
            "restart": ["start", "mlflow-restart"],
            **tls,
            **login,
        },
        "role, one worker": {"url": "http://localhost:5105", "units": ["bench-one"], **login},
    }
    return {name: {"name": name, **description} for name, description in found.items()}


def store_environment(lab: Lab) -> dict[str, str]:
    """Return what MLflow's client and boto3 need on the host to reach the store and trust both servers."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": lab.passwords["store"],
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CA_BUNDLE": f"{FOLDER}/ca.pem",
        "REQUESTS_CA_BUNDLE": f"{FOLDER}/ca.pem",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
