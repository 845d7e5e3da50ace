"""A secret is found in every form that a program on its way can give it, and never printed."""

from __future__ import annotations

import base64
import html
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import yaml

from tools import leaks

ROOT = Path(__file__).resolve().parents[3]
# Every character that some quoting treats in its own way.
ODD = "p@ss/w:rd#100%&x\"'$ \\<é>+?=~`"
SECRETS = {"plain": "correct-horse-battery", "odd": ODD, "amp": "a&b;c|d e%f"}


@pytest.fixture(scope="module")
def search() -> leaks.Search:
    return leaks.Search(SECRETS)


FORMS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "URL": lambda s: f"postgresql://user:{quote(s, safe='')}@host/db",
    "URL path": quote,
    "form": quote_plus,
    "small percent": lambda s: "".join(
        f"%{byte:02x}" if chr(byte) in "@/:#%&\"'$ \\<>+?=`;|" or byte > 127 else chr(byte) for byte in s.encode()
    ),
    "JSON": lambda s: json.dumps({"password": s}),
    "JSON, Unicode": lambda s: json.dumps({"password": s}, ensure_ascii=False),
    "JSON within JSON": lambda s: json.dumps(json.dumps({"password": s})),
    "JSON with slashes": lambda s: json.dumps(s).replace("/", "\\/"),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "basic auth": lambda s: "Authorization: Basic " + base64.b64encode(f"admin:{s}".encode()).decode(),
    "basic auth, longer": lambda s: base64.b64encode(f"me:{s}\n".encode()).decode(),
    "basic auth, url-safe": lambda s: base64.urlsafe_b64encode(f"admin1:{s}?".encode()).decode(),
    "JSON in base64": lambda s: base64.b64encode(json.dumps({"password": s}).encode()).decode(),
    "shell": lambda s: f"PASSWORD={shlex.quote(s)} run",
    "double quotes": lambda s: 'PASSWORD="' + "".join(f"\\{c}" if c in '"\\$`' else c for c in s) + '"',
    "ini": lambda s: f"password = {s.replace('%', '%%')}",
    "URL in an ini": lambda s: f"uri = {quote(s, safe='').replace('%', '%%')}",
    "compose": lambda s: s.replace("$", "$$"),
    "Python": lambda s: repr({"password": s}),
    "SQL": lambda s: "ALTER ROLE x PASSWORD '" + s.replace("'", "''") + "'",
    "HTML": html.escape,
    "hex": lambda s: s.encode().hex(),
    "YAML": lambda s: yaml.safe_dump({"password": s}, width=1000, allow_unicode=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_in_each_form(search: leaks.Search, name: str, form: str) -> None:
    text = f"nothing here\nbefore {FORMS[form](SECRETS[name])} after\n"
    found = search.text(text, "a.log")
    assert [(leak.source, leak.line, leak.secret) for leak in found] == [("a.log", 2, name)]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("command", ['printf %q "$1"', 'set -x; : "$1"', 'echo "${1@Q}"', "declare -p BASH_ARGV0"])
def test_bash_writes_it_so(search: leaks.Search, command: str, locale: str) -> None:
    """Asked of the shell itself: each of these ends up in a log."""
    done = subprocess.run(["bash", "-c", command, ODD, ODD], capture_output=True, check=True, env={"LC_ALL": locale})
    assert {leak.secret for leak in search.text(done.stdout + done.stderr, "bash")} == {"odd"}


def test_clean_text_is_clean(search: leaks.Search) -> None:
    text = "correct-horse\nbattery\np@ss\n" + base64.b64encode(os.urandom(50_000)).decode() + quote(ODD[:-2])
    assert search.text(text, "a.log") == []


def test_each_line_of_a_private_key_is_a_secret() -> None:
    lines = [base64.b64encode(os.urandom(48)).decode() for _ in range(3)]
    key = "\n".join(["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----", ""])
    search = leaks.Search({"key": key})
    assert [leak.form for leak in search.text(f"x\n  {lines[1]}\n", "a")] == ["raw, line 3"]
    assert search.text(json.dumps(key), "a") != []
    assert search.text("-----BEGIN PRIVATE KEY-----", "a") == []


def test_binary_and_nul_separated_files_are_read(search: leaks.Search, tmp_path: Path) -> None:
    (tmp_path / "environ").write_bytes(b"A=1\0PASSWORD=correct-horse-battery\0\xff\xfe")
    (leak,) = search.path(tmp_path)
    assert (leak.source, leak.secret, leak.form) == (str(tmp_path / "environ"), "plain", "raw")


def test_folders_are_walked_without_following_links(search: leaks.Search, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("correct-horse-battery")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "a/link").symlink_to(tmp_path / "a/b/file")
    os.mkfifo(tmp_path / "a/pipe")
    assert [leak.source for leak in search.path(tmp_path)] == [str(tmp_path / "a/b/file")]


def test_a_large_log_takes_seconds(search: leaks.Search) -> None:
    started = time.monotonic()
    search.text(b"TASK [Main | Bring it to its state] ok: [localhost] => {'changed': false}\n" * 100_000, "a.log")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("secrets", [{}, {"short": "12345"}, {"empty": ""}])
def test_a_search_that_could_prove_nothing_is_refused(secrets: dict[str, str]) -> None:
    with pytest.raises(leaks.LeaksError):
        leaks.Search(secrets)


# -- the command -------------------------------------------------------------------------------------------------------


def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.leaks", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )


@pytest.fixture
def secrets(tmp_path: Path) -> str:
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"database": {"password": ODD, "port": 5432}, "keys": ["correct-horse-battery"]}))
    return str(path)


def test_the_command_names_the_place_and_never_the_secret(secrets: str, tmp_path: Path) -> None:
    log = tmp_path / "ansible.log"
    log.write_text(f"one\ntwo {quote(ODD, safe='')}\n")
    done = command("--secrets", secrets, str(log), "-", stdin="correct-horse-battery")
    assert done.returncode == 1
    assert done.stdout == f"{log}:2: database.password (URL-encoded)\nstdin:1: keys.0 (raw)\n"
    assert leaks.Search({"odd": ODD}).text(done.stdout + done.stderr, "x") == []


def test_the_command_is_quiet_when_all_is_clean(secrets: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("nothing")
    done = command("--secrets", secrets, str(tmp_path / "log"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_secrets_come_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(ODD)
    done = command("--secrets", "-", str(tmp_path / "log"), stdin=json.dumps({"odd": ODD}))
    assert (done.returncode, done.stdout) == (1, f"{tmp_path / 'log'}:1: odd (raw)\n")


def test_what_cannot_be_read_is_not_clean(secrets: str, tmp_path: Path) -> None:
    done = command("--secrets", secrets, str(tmp_path / "missing"))
    assert done.returncode == 2 and "not proven clean" in done.stderr


@pytest.mark.parametrize("content", ["{", '"x', "{}", '{"a": "b"}', "5"])
def test_bad_secrets_are_refused_without_showing_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets.json").write_text(content + "topsecret" * (content == "{"))
    done = command("--secrets", str(tmp_path / "secrets.json"), str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() and "Traceback" not in done.stderr and "topsecret" not in done.stderr


def test_standard_input_serves_once(tmp_path: Path) -> None:
    assert command("--secrets", "-", "-", stdin="{}").returncode == 2
