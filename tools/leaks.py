"""Says where a secret occurs that should occur nowhere: raw, or in a form that a program on its way gave it.

    python -m tools.leaks --secrets secrets.json ansible.log /tmp/collected/
    ... | python -m tools.leaks --secrets secrets.json -
    ... | python -m tools.leaks --secrets - ansible.log

The secrets come from a JSON file or from standard input, never from the command line, which every user of the machine
can read. Prints one line for each find (source, line, the secret's name and its form; never the secret) and exits with
0 when nothing was found, 1 when something was, 2 when something could not be read: that has not been proven clean.

Compressed and encrypted files are not looked into.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

MINIMUM = 6
"""Shorter secrets occur by chance."""

_LINE = 20
"""Of a secret with several lines, such as a private key, each line of this length or more is looked for by itself."""


class LeaksError(Exception):
    """Input that cannot be used; the message says which, and why."""


@dataclass(frozen=True, order=True)
class Leak:
    """@secret is the secret's name, @form how it was written, @line counts from 1."""

    source: str
    line: int
    secret: str
    form: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.secret} ({self.form})"


def _lower_percent(text: str) -> str:
    """Percent-encoding with small letters, as some clients write it."""
    parts = text.split("%")
    return parts[0] + "".join(f"%{part[:2].lower()}{part[2:]}" for part in parts[1:])


def _backslashed(text: str, characters: str) -> str:
    return "".join(f"\\{character}" if character in characters else character for character in text)


def _c_escaped(text: str) -> str:
    """As in $'...': other bytes than ASCII in octal, as a shell without UTF-8 writes them."""
    escaped = _backslashed(text, "\\'").encode()
    return "".join(f"\\{byte:03o}" if byte > 127 else chr(byte) for byte in escaped)


_FORMS: dict[str, Callable[[str], str]] = {
    "URL-encoded": lambda s: quote(s, safe=""),
    "URL-encoded but for slashes": lambda s: quote(s, safe="/"),
    "form-encoded": quote_plus,
    "URL-encoded in small letters": lambda s: _lower_percent(quote(s, safe="")),
    "JSON-escaped": lambda s: json.dumps(s)[1:-1],
    "JSON-escaped, as Unicode": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "JSON-escaped with slashes": lambda s: json.dumps(s)[1:-1].replace("/", "\\/"),
    "Python literal": lambda s: repr(s)[1:-1],
    "Python literal in single quotes": lambda s: repr(s + '"')[1:-2],
    "shell-quoted": lambda s: shlex.quote(s).removeprefix("'").removesuffix("'"),
    "shell-quoted by the shell": lambda s: s.replace("'", "'\\''"),
    # As printf %q writes it, a tilde behind = or : included; a first # gets a backslash, which stands before the find.
    "shell-escaped": lambda s: re.sub(r"(?<=[=:])~", r"\\~", _backslashed(s, " \t\n!\"$&'()*,;<>?[\\]^`{|}")),
    "shell-escaped in C's way": _c_escaped,
    "in double quotes": lambda s: _backslashed(s, '"\\$`'),
    "quoted for YAML or SQL": lambda s: s.replace("'", "''"),
    "%-doubled": lambda s: s.replace("%", "%%"),
    "$-doubled": lambda s: s.replace("$", "$$"),
    "HTML-escaped": html.escape,
    "in hexadecimal": lambda s: s.encode().hex(),
    "in hexadecimal capitals": lambda s: s.encode().hex().upper(),
}


def _base64(text: str) -> Iterator[str]:
    """What any base64 that contains @text contains, wherever it begins: as in C(user:password)."""
    raw = text.encode()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).decode()
        # Characters that also depend on what stands before or behind are cut off.
        start = (0, 2, 3)[offset]
        end = len(encoded) if (offset + len(raw)) % 3 == 0 else len(encoded.rstrip("=")) - 1
        core = encoded[start:end]
        yield core
        yield core.replace("+", "-").replace("/", "_")


def needles(secret: str) -> dict[str, str]:
    """Every form in which @secret is looked for, with the form's name.

    Two encodings can be one upon the other: a URL in an INI file has C(%%40) for an @.
    """
    found = {secret: "raw"}
    for name, encode in _FORMS.items():
        found.setdefault(encode(secret), name)
    for once, once_name in list(found.items()):
        for name, encode in _FORMS.items():
            found.setdefault(encode(once), f"{once_name}, then {name}")
    for once, once_name in list(found.items()):
        for core in _base64(once) if ", then " not in once_name else ():
            if len(core) >= MINIMUM:
                found.setdefault(core, "in base64" if once_name == "raw" else f"{once_name}, then in base64")
    lines = [line.strip() for line in secret.splitlines()]
    # The first and last line of a key's armour are no secret.
    for number, line in enumerate(lines, start=1):
        if len(lines) > 1 and len(line) >= _LINE and not line.startswith("-----"):
            found.setdefault(line, f"raw, line {number}")
    return found


class Search:
    """Looks for @secrets, values by name. Raises LeaksError for one that is too short to look for."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        if not secrets:
            raise LeaksError("No secrets were given, so nothing could be found.")
        self._needles: list[tuple[bytes, str, str]] = []
        for name, value in secrets.items():
            if len(value) < MINIMUM:
                raise LeaksError(f"The secret {name} has fewer than {MINIMUM} characters: it would be found by chance.")
            self._needles += [(needle.encode(), name, form) for needle, form in needles(value).items()]

    def text(self, content: bytes | str, source: str) -> list[Leak]:
        """The finds in @content; of several forms of a secret in one line, the first only."""
        raw = content.encode() if isinstance(content, str) else content
        found: dict[tuple[int, str], Leak] = {}
        for needle, name, form in self._needles:
            position = raw.find(needle)
            while position >= 0:
                line = raw.count(b"\n", 0, position) + 1
                found.setdefault((line, name), Leak(source, line, name, form))
                position = raw.find(needle, position + len(needle))
        return sorted(found.values())

    def path(self, path: Path) -> Iterator[Leak]:
        """The finds in a file, or in all files below a folder. Links are not followed. Raises OSError."""
        for file in _files(path):
            yield from self.text(file.read_bytes(), str(file))


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for entry in sorted(path.iterdir()):
        if entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _files(entry)
        elif entry.is_file():  # no sockets and pipes
            yield entry


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """The strings in JSON data, by their paths: C({"database": {"password": "x"}}) gives C(database.password)."""
    if isinstance(value, str):
        return {name or "secret": value}
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {}
    return {
        path: secret
        for key, item in items
        for path, secret in flatten(item, f"{name}.{key}" if name else str(key)).items()
    }


def _secrets(source: str) -> dict[str, str]:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        return flatten(json.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        raise LeaksError(f"Failed to read the secrets from {source}: {error}") from error
    except json.JSONDecodeError as error:
        # Not the error's own words with the document: it holds the secrets.
        raise LeaksError(f"Failed to read the secrets from {source}: no JSON (line {error.lineno}).") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.leaks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--secrets", required=True, metavar="FILE", help="JSON: the secrets by name; - is standard input"
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="file or folder to look into; - is standard input")
    options = parser.parse_args(arguments)
    if options.secrets == "-" and "-" in options.sources:
        parser.error("standard input cannot be both the secrets and a source")
    try:
        search = Search(_secrets(options.secrets))
    except LeaksError as error:
        print(error, file=sys.stderr)
        return 2
    found = unread = 0
    for source in options.sources:
        try:
            leaks = search.text(sys.stdin.buffer.read(), "stdin") if source == "-" else search.path(Path(source))
            for leak in leaks:
                found += 1
                print(leak)
        except OSError as error:
            unread += 1
            print(f"Failed to read {source}, so it is not proven clean: {error}", file=sys.stderr)
    return 2 if unread else 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
