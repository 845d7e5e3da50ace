"""What `make` decides on a machine where something is missing, old or half made, and the sentence that it says then."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import bootstrap, engine, environment
from tools.console import ProblemError

BOOTSTRAP = Path(bootstrap.__file__)


def fake(folder: Path, name: str, status: int) -> Path:
    """Put a program of this name into a folder."""
    program = folder / name
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    return program


def test_bootstrap_is_readable_for_an_old_python() -> None:
    ast.parse(BOOTSTRAP.read_text(), feature_version=(3, 5))


def test_an_old_python_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^Python 3\.11 or newer is needed, .* is 3\.8\.18, and no newer python3\.X"):
        bootstrap.main()


def test_a_newer_python_on_path_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    monkeypatch.setenv("PATH", str(tmp_path))
    fake(tmp_path, "python3.13", 1)  # a pyenv shim that says "not selected"
    program = fake(tmp_path, "python3.12", 0)
    assert bootstrap.find_python() == str(program)


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        ("denied", r"permission denied: add yourself to the group docker \(sudo usermod -aG docker "),
        ("silent", r"see `sudo systemctl status docker`"),
    ],
)
def test_an_engine_that_does_not_answer_is_explained(cause: str, sentence: str) -> None:
    problem = engine.explain(engine.UnreachableError(engine.SOCKET, cause, "no answer"))
    assert str(problem).startswith(f"Docker does not answer at {engine.SOCKET}: ")
    with pytest.raises(ProblemError, match=sentence):
        raise problem


@pytest.mark.parametrize(
    ("installed", "sentence"), [(False, "Docker is not installed, and installing it needs root"), (True, "needs root")]
)
def test_a_missing_engine_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: bool, sentence: str
) -> None:
    monkeypatch.setattr(engine, "which", lambda name: "/usr/sbin/dockerd" if installed else None)
    missing = engine.UnreachableError(tmp_path / "docker.sock", "missing", "there is no such socket")
    assert sentence in str(engine.explain(missing))


def test_a_user_without_root_is_told_and_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(engine, "which", lambda name: None)
    monkeypatch.setattr(engine, "install_and_start", lambda default: pytest.fail("it tried to install Docker"))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ProblemError, match=r"sudo apt-get install docker\.io"):
        engine.ensure(tmp_path / "docker.sock")


def test_an_engine_on_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(
        ProblemError, match=r"names the engine tcp://192\.0\.2\.1:2375, which may be on another machine"
    ):
        engine.find(engine.SOCKET)


def test_a_pid_file_of_a_killed_engine_is_removed_and_a_living_one_is_not(tmp_path: Path) -> None:
    """The number in a stale file belongs to another program by now: here to this test."""
    stale, living = tmp_path / "docker.pid", tmp_path / "docker/containerd/containerd.pid"
    living.parent.mkdir(parents=True)
    stale.write_text(str(os.getpid()))
    program = tmp_path / "containerd"
    program.symlink_to(str(shutil.which("sleep")))
    with subprocess.Popen([program, "30"]) as process:
        living.write_text(str(process.pid))
        # The kernel lets Popen return a moment before it gives a new program its name.
        for _ in range(200):
            if Path(f"/proc/{process.pid}/comm").read_text() == "containerd\n":
                break
            time.sleep(0.01)
        engine.clear_stale_pid_files(tmp_path)
        process.kill()
    assert not stale.exists()
    assert living.exists()


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout of its own for what environment.py writes."""
    monkeypatch.setattr(environment, "LINK", tmp_path / ".ansible/collections/ansible_collections/mlops/mlflow_aws")
    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(environment, "PYTHON", Path(sys.executable))
    return tmp_path


def test_the_link_is_made_and_a_broken_one_repaired(checkout: Path) -> None:
    for _ in range(2):
        environment.ensure_link()
        assert environment.LINK.resolve() == checkout
        environment.LINK.unlink()
        environment.LINK.symlink_to("/nowhere")


def test_something_else_in_place_of_the_link_is_not_removed(checkout: Path) -> None:
    environment.LINK.mkdir(parents=True)
    with pytest.raises(ProblemError, match="must be a link to this checkout, and something else is there"):
        environment.ensure_link()
    assert environment.LINK.is_dir()


def test_an_environment_is_complete_only_with_the_same_parts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not environment.complete()  # interrupted before its end: no stamp
    environment.STAMP.write_text(environment.fingerprint())
    assert environment.complete()
    other = checkout / "requirements.txt"
    other.write_text("boto3==0.0.1\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", other)
    assert not environment.complete()


def test_pip_settings_of_the_environment_win() -> None:
    listing = ":env:.cert='/a.pem'\nglobal.cert='/b.pem'\nglobal.extra-index-url='file:///x'\ninstall.no-index='1'\n"
    assert environment.pip_settings(listing) == {"cert": "/a.pem", "extra-index-url": "file:///x", "no-index": "1"}
