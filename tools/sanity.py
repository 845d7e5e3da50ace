"""Run `ansible-test sanity` on the collection as it is built, without ignore files.

Usage: python -m tools.sanity [ARGUMENT of ansible-test sanity ...], for example --test validate-modules

The collection is built from the working tree and unpacked where ansible-test wants it: below a directory named
ansible_collections. ansible-test fetches pip for its virtual environments from the internet unless a script is there
already; it is put there, made of the pip that the configured package index has, so that no other server is needed.
Caches are kept in .mlflow_aws/test/sanity, and the user's own ~/.ansible is left alone.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from tools.console import ROOT, ProblemError, exclusive, fail, run_quietly, say, state_dir
from tools.environment import pip_settings

BIN = Path(sys.executable).parent
NAMESPACE, NAME = "mlops", "mlflow_aws"

# Run by ansible-test instead of get-pip.py, with the same arguments; two of them pip does not know.
GET_PIP = '''"""Install pip from the wheel beside this file."""
import runpy
import sys

sys.path.insert(0, {wheel!r})
sys.argv[1:] = ["install"] + [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
'''


def pip_versions() -> list[str]:
    """Return the versions of pip that the installed ansible-test puts into its environments.

    Source: `get_venv_packages` in ansible_test/_internal/python_requirements.py.
    """
    spec = find_spec("ansible_test")
    if spec is None or not spec.submodule_search_locations:
        raise ProblemError("ansible-test is not installed: run `make setup` and use .venv/bin/python.")
    source = Path(next(iter(spec.submodule_search_locations))) / "_internal/python_requirements.py"
    versions = sorted(set(re.findall(r"""\bpip\s*=\s*'(\d[\d.]*)'""", source.read_text())))
    if not versions:
        raise ProblemError(f"{source} no longer says which pip it needs: adapt tools/sanity.py to this ansible-core.")
    return versions


def prepare_pip(home: Path) -> None:
    """Make pip's settings and its bootstrap script known in `home`; ansible-test passes no PIP_* variable on."""
    pip = [sys.executable, "-m", "pip"]
    listing = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False, cwd=ROOT).stdout
    config = configparser.RawConfigParser()
    config["global"] = {name: value.replace("\n", "\n ") for name, value in pip_settings(listing).items()}
    path = home / ".config/pip/pip.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        config.write(file)
    path.chmod(0o600)
    cache = home / ".ansible/test/cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in pip_versions():
        script = cache / f"get_pip_{version.replace('.', '_')}.py"
        wheel = cache / f"pip-{version}-py3-none-any.whl"
        if not wheel.exists():
            run_quietly(
                [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", cache, f"pip=={version}"],
                f"fetch pip {version} for ansible-test",
            )
        script.write_text(GET_PIP.format(wheel=str(wheel)))


def unpack_collection(parent: Path, env: Mapping[str, str]) -> Path:
    """Build the collection, unpack it below `parent`, and return the directory in which ansible-test can work."""
    run_quietly(
        [BIN / "ansible-galaxy", "collection", "build", "--force", "--output-path", parent, ROOT],
        "build the collection",
        env,
    )
    (archive,) = parent.glob("*.tar.gz")
    target = parent / "ansible_collections" / NAMESPACE / NAME
    target.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target


def link_dependencies(parent: Path) -> None:
    """Put the installed collections that galaxy.yml names beside ours: ansible-test looks for them nowhere else."""
    with (ROOT / "galaxy.yml").open() as file:
        wanted = yaml.safe_load(file)["dependencies"]
    spec = find_spec("ansible_collections")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for name in wanted:
        namespace, _, short = name.partition(".")
        found = next((place / namespace / short for place in places if (place / namespace / short).is_dir()), None)
        if found is None:
            raise ProblemError(f"The collection {name} is not installed: run `make setup` and use .venv/bin/python.")
        (parent / "ansible_collections" / namespace).mkdir(exist_ok=True)
        (parent / "ansible_collections" / namespace / short).symlink_to(found)


def versioned(tree: Path) -> None:
    """Make a git repository of `tree`: ansible-test lists the files that git knows."""
    git = ["git", "-C", str(tree), "-c", "user.name=sanity", "-c", "user.email=sanity@localhost"]
    run_quietly([*git, "init", "--quiet"], "prepare the collection for ansible-test")
    run_quietly([*git, "add", "--all", "--force"], "prepare the collection for ansible-test")
    run_quietly([*git, "commit", "--quiet", "--message", "As built"], "prepare the collection for ansible-test")


def ignore_files() -> list[Path]:
    """Return the files that would hide findings."""
    return sorted((ROOT / "tests/sanity").glob("ignore*.txt"))


def run(arguments: Sequence[str]) -> int:
    """Run ansible-test sanity and return its exit status."""
    if hiding := ignore_files():
        names = ", ".join(str(path.relative_to(ROOT)) for path in hiding)
        raise ProblemError(f"{names} would hide findings: delete the file and mend what it lists.")
    home = state_dir() / "test/sanity"
    home.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "HOME": str(home), "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])}
    env.pop("ANSIBLE_CONFIG", None)
    with exclusive("sanity"), tempfile.TemporaryDirectory(prefix="mlflow_aws-sanity-") as scratch:
        prepare_pip(home)
        tree = unpack_collection(Path(scratch), env)
        versioned(tree)
        link_dependencies(Path(scratch))
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        command = [str(BIN / "ansible-test"), "sanity", "--color", "no", "--python", version, *arguments]
        return subprocess.run(command, cwd=tree, env=env, stdin=subprocess.DEVNULL, check=False).returncode


def main() -> None:
    """Run, and say how it ended."""
    if shutil.which("git") is None:
        fail(ProblemError("git is not installed, and ansible-test needs it to list files: apt-get install git"))
    start = time.monotonic()
    try:
        status = run(sys.argv[1:])
    except ProblemError as problem:
        fail(problem)
    say(f"ansible-test sanity: {'no findings' if status == 0 else 'FAILED'}, {time.monotonic() - start:.1f} s")
    raise SystemExit(1 if status else 0)


if __name__ == "__main__":
    main()
