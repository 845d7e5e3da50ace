#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Writes several files on a host in one go
version_added: 0.1.0
description:
  - Writes text files and creates the directories for them, each only if it differs in content, owner, group or mode.
  - All of them take one round trip to the host. M(ansible.builtin.template) and M(ansible.builtin.copy) take two for each
    file that is as it should be, and five or more for each that is not.
  - Each file is replaced whole or not at all. A file that fails leaves those before it in the list as they are written by then.
  - The contents go through the task's arguments, so this is for configuration and programs, not for large or binary files.
options:
  files:
    description: The files and directories, in the order in which they are written.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path on the host. What a symbolic link points to is left alone; the link itself is replaced.
        type: path
        required: true
      content:
        description: Text of the file, written as UTF-8. Required for a file.
        type: str
      state:
        description: Whether it is a file with that content, a directory, or nothing at all. Only a file or a link is removed.
        type: str
        choices: [file, directory, absent]
        default: file
      mode:
        description: Its permissions, as an octal number in quotes. Required unless O(files[].state=absent).
        type: str
      validate:
        description:
          - Command that must succeed before a new content takes its place. V(%s) in it stands for the path of a copy.
          - Not run in check mode, where what it looks for may not be there yet.
        type: str
  owner:
    description: Name of the user who owns all of them.
    type: str
    default: root
  group:
    description: Name of the group that owns all of them.
    type: str
    default: root
attributes:
  check_mode:
    description: Can run in check mode and foretells the changes.
    support: full
  diff_mode:
    description: Shows the lines that change, of all files together.
    support: full
notes:
  - Set C(no_log) on the task when a content is a secret, and C(diff) to V(false).
  - The module never writes the contents to the host's system log.
author:
  - The mlops.mlflow_aws founders (@mlops)
"""

EXAMPLES = r"""
- name: Write a unit and the script that it runs
  mlops.mlflow_aws.files:
    files:
      - path: /etc/systemd/system/report.service
        content: "{{ lookup('ansible.builtin.template', 'report.service.j2') }}"
        mode: "0644"
      - path: /usr/local/sbin/report
        content: "{{ lookup('ansible.builtin.file', 'report.sh', rstrip=false) }}"
        mode: "0755"
        validate: /bin/sh -n %s
  register: units
"""

RETURN = r"""
paths:
  description: What was written, created, removed or given another owner or mode; in check mode, what would be.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/system/report.service]
"""

import difflib
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def is_folder(path: Path) -> bool:
    """Tell whether it is a directory itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def current(path: Path) -> bytes | None:
    """Return the content of a regular file, or None for whatever else is there."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def text_lines(content: bytes | None) -> list[str]:
    """Return the lines that a diff shows."""
    return (content or b"").decode(errors="replace").splitlines(keepends=True)


class Writer:
    """Brings files to the wanted state."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.dry: bool = module.check_mode
        self.paths: list[str] = []
        self.diff: list[str] = []

    def fail(self, path: Path, message: str) -> None:
        """End the module."""
        self.module.fail_json(msg=f"{path}: {message}", paths=self.paths)

    def show(self, path: Path, before: bytes | None, after: bytes | None) -> None:
        """Keep the lines that change, for the diff."""
        lines = difflib.unified_diff(text_lines(before), text_lines(after), f"before: {path}", f"after: {path}")
        self.diff.extend(line if line.endswith("\n") else line + "\n" for line in lines)

    def bring(self, wanted: Mapping[str, Any]) -> None:
        """Bring one of them to the wanted state.

        Raises: OSError when the host refuses.
        """
        path = Path(wanted["path"])
        if not path.is_absolute():
            self.fail(path, "the path must be absolute")
        changed: bool = getattr(self, wanted["state"])(path, wanted)
        if wanted["state"] != "absent" and not (changed and self.dry):
            arguments = self.module.load_file_common_arguments(
                {**self.module.params, "mode": wanted["mode"]}, str(path)
            )
            changed = self.module.set_fs_attributes_if_different(arguments, changed)
        if changed:
            self.paths.append(str(path))

    def directory(self, path: Path, _wanted: Mapping[str, Any]) -> bool:
        """Create a directory with its parents; tell whether it was missing."""
        if path.is_dir():
            return False
        if path.exists() or path.is_symlink():
            self.fail(path, "something that is no directory is in its place")
        if not self.dry:
            # Its parents are for everybody; its own mode follows.
            mask = os.umask(0o022)
            path.mkdir(parents=True)
            os.umask(mask)
        return True

    def absent(self, path: Path, _wanted: Mapping[str, Any]) -> bool:
        """Remove a file or a link; tell whether it was there."""
        if not path.exists() and not path.is_symlink():
            return False
        if is_folder(path):
            self.fail(path, "this module removes no directories")
        self.show(path, current(path), None)
        if not self.dry:
            path.unlink()
        return True

    def file(self, path: Path, wanted: Mapping[str, Any]) -> bool:
        """Write a file unless it has the content; tell whether it had not."""
        content = wanted["content"].encode()
        before = current(path)
        if before == content:
            return False
        if is_folder(path):
            self.fail(path, "a directory is in its place")
        self.show(path, before, content)
        if self.dry:
            return True
        descriptor, written = tempfile.mkstemp(dir=self.module.tmpdir)
        self.module.add_cleanup_file(written)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        if wanted["validate"]:
            self.validate(path, wanted["validate"], written)
        if not path.parent.is_dir():
            self.fail(path, "its directory does not exist; name it before the file, with state: directory")
        if path.is_symlink():
            # Moved onto, the link would be followed.
            path.unlink()
        self.module.atomic_move(written, str(path))
        return True

    def validate(self, path: Path, command: str, written: str) -> None:
        """End the module unless the command accepts the new content."""
        words = shlex.split(command)
        if "%s" not in command:
            self.fail(path, f"validate must hold %s, for the path of the copy to look at: {command}")
        status, output, errors = self.module.run_command([word.replace("%s", written) for word in words])
        if status != 0:
            self.fail(path, f"'{command}' refuses the new content: {(errors or output).strip()}")


def options() -> dict[str, Any]:
    """Return the argument specification."""
    return {
        "files": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "path": {"type": "path", "required": True},
                "content": {"type": "str"},
                "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
                "mode": {"type": "str"},
                "validate": {"type": "str"},
            },
            "required_if": [("state", "file", ("content", "mode")), ("state", "directory", ("mode",))],
        },
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }


def results(writer: Writer) -> Iterator[tuple[str, Any]]:
    """Yield what the module returns."""
    yield "changed", bool(writer.paths)
    yield "paths", writer.paths
    if writer.module._diff and writer.diff:
        yield "diff", {"prepared": "".join(writer.diff)}


def main() -> None:
    """Run the module."""
    # Not in the system log: the contents are long, and may be secrets.
    module = AnsibleModule(argument_spec=options(), supports_check_mode=True, no_log=True)
    # Until a file has the mode that it is to have, nobody else may read it.
    os.umask(0o077)
    writer = Writer(module)
    for wanted in module.params["files"]:
        try:
            writer.bring(wanted)
        except OSError as error:
            writer.fail(Path(wanted["path"]), str(error))
    module.exit_json(**dict(results(writer)))


if __name__ == "__main__":
    main()
