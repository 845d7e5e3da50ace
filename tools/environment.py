"""Make `.venv` with everything of requirements.txt, and the link through which a checkout finds its own collection.

Standard library only: it runs before the virtual environment exists. Run again it costs a few milliseconds.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tools import apt
from tools.console import (
    GIGABYTE,
    ROOT,
    SETUP_LOG,
    VENV,
    ProblemError,
    exclusive,
    fail,
    require_space,
    run_quietly,
    say,
)

UV = "uv==0.13.8"
REQUIREMENTS = ROOT / "requirements.txt"
STAMP = VENV / ".complete"
LINK = ROOT / ".ansible/collections/ansible_collections/mlops/mlflow_aws"
LINK_TARGET = Path("../../../..")
# Measured: 0.7 GB for the environment, as much again in uv's cache when that cannot be hard-linked.
SPACE = int(1.5 * GIGABYTE)
PYTHON = VENV / "bin/python"
COMPILED = (
    *("ansible", "boto3", "botocore", "cryptography", "dateutil", "jinja2"),
    *("jmespath", "markupsafe", "packaging", "s3transfer", "urllib3", "yaml"),
)


def base_python() -> str:
    """Return the interpreter to build from: the one below, when an activated `.venv` runs this."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def fingerprint() -> str:
    """Return a digest of all that the environment depends on; another digest means that it must be built anew."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes())
    # Scripts in bin/ hold the absolute path, so a checkout that moved needs a new environment too.
    for part in (UV, sys.version, sys.base_prefix, platform.machine(), str(VENV)):
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def complete() -> bool:
    """Tell whether the environment was built to its end, from the same parts, and its interpreter is still there."""
    try:
        return STAMP.read_text() == fingerprint() and PYTHON.exists()
    except OSError:
        return False


def pip_settings(listing: str) -> dict[str, str]:
    """Parse the output of `pip config list`; of one setting the environment beats [install], which beats [global]."""
    settings: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):
        for line in listing.splitlines():
            name, equals, value = line.partition("=")
            if equals and name.startswith(section):
                with contextlib.suppress(ValueError, SyntaxError):
                    settings[name.removeprefix(section)] = str(ast.literal_eval(value))
    return settings


def uv_environment(settings: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make uv behave as pip's configuration says; what `env` already says to uv wins.

    uv reads no configuration of pip's (uv documentation, "Compatibility with pip: Configuration files and environment
    variables"), and a site that has its packages or its CA in pip's would be lost without them.
    """
    translated: dict[str, str] = {}
    if "index-url" in settings:
        translated["UV_DEFAULT_INDEX"] = settings["index-url"]
    if "extra-index-url" in settings:
        translated["UV_INDEX"] = " ".join(settings["extra-index-url"].split())
        # pip takes the best version from all its indexes; uv would stop at the first that has the name.
        translated["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if "find-links" in settings:
        # pip skips a directory that is not there, uv fails.
        places = [place for place in settings["find-links"].split() if "://" in place or Path(place).is_dir()]
        translated["UV_FIND_LINKS"] = ",".join(places)
    if "trusted-host" in settings:
        translated["UV_INSECURE_HOST"] = " ".join(settings["trusted-host"].split())
    if "timeout" in settings:
        translated["UV_HTTP_TIMEOUT"] = settings["timeout"]
    if "default-timeout" in settings:
        translated["UV_HTTP_TIMEOUT"] = settings["default-timeout"]
    if "proxy" in settings:
        translated["HTTPS_PROXY"] = translated["HTTP_PROXY"] = settings["proxy"]
    if "client-cert" in settings:
        translated["SSL_CLIENT_CERT"] = settings["client-cert"]
    if "cert" in settings:
        translated["SSL_CERT_FILE"] = settings["cert"]
    else:
        # pip trusts the system's store; uv would trust only the one that it carries.
        translated["UV_SYSTEM_CERTS"] = "1"
    return {**{name: value for name, value in translated.items() if value}, **env}


def ensure_venv_module() -> None:
    """See to it that this Python can make virtual environments; Debian has the needed part in a package of its own.

    Raises: ProblemError when it is missing and cannot be installed from here.
    """
    if importlib.util.find_spec("ensurepip") is not None:
        return
    base = Path(base_python()).resolve()
    is_default = base == Path("/usr/bin/python3").resolve()
    package = "python3-venv" if is_default else f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if not apt.available():
        raise ProblemError(
            f"{base} cannot make virtual environments, because Debian and Ubuntu keep that part in a package of its "
            f"own: sudo apt-get install {package}"
        )
    apt.install([package])
    importlib.invalidate_caches()
    if importlib.util.find_spec("ensurepip") is None:
        raise ProblemError(f"{base} still has no ensurepip after `apt-get install {package}`: use another Python.")


def install_packages() -> None:
    """Install requirements.txt into the environment with uv, or with pip where uv does not work.

    Raises: ProblemError with the end of pip's output when neither works.
    """
    run_quietly([PYTHON, "-m", "pip", "install", "--quiet", UV], f"install {UV} with pip")
    listing = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout
    settings = pip_settings(listing)
    command: list[str | Path] = [
        VENV / "bin/uv",
        "pip",
        "install",
        "--python",
        PYTHON,
        "--no-progress",
        "-r",
        REQUIREMENTS,
    ]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        command.append("--no-index")
    try:
        run_quietly(command, "install requirements.txt with uv", uv_environment(settings, os.environ))
    except ProblemError:
        say(f"    uv could not install the packages (why is in {SETUP_LOG}); trying pip, which takes longer")
        run_quietly(
            [PYTHON, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], "install requirements.txt with pip"
        )


def compile_packages() -> None:
    """Compile what every AWS module imports, in about a second.

    uv leaves no bytecode, and where PYTHONDONTWRITEBYTECODE is set nobody else does: each module run would then spend
    0.15 s of its 0.6 s on compiling boto3 (measured on 2 cores).
    """
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    packages = [VENV / library / name for name in COMPILED]
    run_quietly([PYTHON, "-m", "compileall", "-q", "-j", "2", *packages], "compile the packages")


def build() -> None:
    """Build the environment from nothing; the stamp is written last, so that an interrupted build is seen as such."""
    ensure_venv_module()
    require_space(VENV, SPACE, "The Python packages")
    say(f"    building .venv with Python {platform.python_version()}")
    shutil.rmtree(VENV, ignore_errors=True)
    run_quietly([base_python(), "-m", "venv", VENV], "create .venv")
    install_packages()
    compile_packages()
    STAMP.write_text(fingerprint())


def ensure_link() -> None:
    """Create or repair the link that makes `mlops.mlflow_aws` resolve to this checkout (see ansible.cfg).

    Raises: ProblemError when something that is not a link stands in its place.
    """
    if LINK.is_symlink() and LINK.readlink() == LINK_TARGET:
        return
    if LINK.exists() and not LINK.is_symlink():
        raise ProblemError(f"{LINK} must be a link to this checkout, and something else is there: move it away.")
    LINK.parent.mkdir(parents=True, exist_ok=True)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(LINK_TARGET)


def ensure() -> None:
    """Bring environment and link to the state that requirements.txt asks for.

    Raises: ProblemError when something is missing that cannot be mended from here.
    """
    ensure_link()
    if complete():
        return
    with exclusive("environment"):
        if not complete():
            build()


def child_env() -> dict[str, str]:
    """Return this process's environment as an activated `.venv` would have it."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    env["VIRTUAL_ENV"] = str(VENV)
    env["PATH"] = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", os.defpath)])
    # A checkout in a world-writable directory would otherwise silently run without its own configuration.
    env["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    return env


def main() -> None:
    """Set up, and say where."""
    try:
        ensure()
    except ProblemError as problem:
        fail(problem)
    say(f"Ready: {VENV} (source .venv/bin/activate)")


if __name__ == "__main__":
    main()
