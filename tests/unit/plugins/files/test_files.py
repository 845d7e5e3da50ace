"""The module that writes several files, on real ones in a folder."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
import stat
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_aws.plugins.modules import files

OWNER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name
File = dict[str, str]


def run(*wanted: File, check: bool = False, diff: bool = False) -> dict[str, Any]:
    """Run the module and return what it says."""
    arguments = {
        "files": [{"path": str(one.pop("path")), **one} for one in map(dict, wanted)],
        "owner": OWNER,
        "group": GROUP,
        "_ansible_check_mode": check,
        "_ansible_diff": diff,
    }
    printed = io.StringIO()
    before = os.umask(0o022)
    try:
        with patch_module_args(arguments), redirect_stdout(printed), pytest.raises(SystemExit):
            files.main()
    finally:
        os.umask(before)
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def a_file(path: Path, content: str = "a\n", mode: str = "0640", **more: str) -> File:
    return {"path": str(path), "content": content, "mode": mode, **more}


def a_directory(path: Path, mode: str = "0755") -> File:
    return {"path": str(path), "state": "directory", "mode": mode}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directories_and_files_are_written_in_their_order_and_once(tmp_path: Path) -> None:
    wanted = [
        a_directory(tmp_path / "a/b", "0700"),
        a_file(tmp_path / "a/b/c", "ä {{ x }}\n"),
        a_file(tmp_path / "d", ""),
    ]
    found = run(*wanted)
    assert found["changed"] is True
    assert found["paths"] == [str(tmp_path / name) for name in ("a/b", "a/b/c", "d")]
    assert (tmp_path / "a/b/c").read_text() == "ä {{ x }}\n"
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c", "d")] == [0o755, 0o700, 0o640, 0o640]
    again = run(*wanted, diff=True)
    assert (again["changed"], again["paths"], "diff" in again) == (False, [], False)


def test_only_what_differs_is_changed(tmp_path: Path) -> None:
    run(a_file(tmp_path / "same"), a_file(tmp_path / "content"), a_file(tmp_path / "mode"))
    inode = (tmp_path / "same").stat().st_ino
    wanted = [a_file(tmp_path / "same"), a_file(tmp_path / "content", "b\n"), a_file(tmp_path / "mode", mode="0600")]
    found = run(*wanted, diff=True)
    assert found["paths"] == [str(tmp_path / "content"), str(tmp_path / "mode")]
    assert (tmp_path / "same").stat().st_ino == inode
    assert (tmp_path / "content").read_text() == "b\n"
    assert mode(tmp_path / "mode") == 0o600
    assert "-a\n+b\n" in found["diff"]["prepared"]


def test_check_mode_foretells_the_same_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("a\n")
    (tmp_path / "gone").write_text("a\n")
    wanted = [
        a_directory(tmp_path / "new"),
        a_file(tmp_path / "new/file"),
        a_file(tmp_path / "old", "b\n"),
        {"path": str(tmp_path / "gone"), "state": "absent"},
    ]
    foretold = run(*wanted, check=True, diff=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["gone", "old"]
    assert (tmp_path / "old").read_text() == "a\n"
    done = run(*wanted, diff=True)
    assert (done["paths"], done["diff"]) == (foretold["paths"], foretold["diff"])


def test_a_refused_content_never_takes_its_place(tmp_path: Path) -> None:
    run(a_file(tmp_path / "script", "exit 0\n"))
    found = run(a_file(tmp_path / "script", "if\n", validate="/bin/sh -n %s"))
    assert found["failed"] is True
    assert found["msg"].startswith(f"{tmp_path / 'script'}: '/bin/sh -n %s' refuses the new content: ")
    assert (tmp_path / "script").read_text() == "exit 0\n"
    assert run(a_file(tmp_path / "script", "exit 1\n", validate="/bin/sh -n %s"))["changed"] is True


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("a\n")
    link.symlink_to(target)
    assert run(a_file(link, "b\n"))["changed"] is True
    assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "b\n", "a\n")
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    assert run({"path": str(link), "state": "absent"})["changed"] is True
    assert not link.is_symlink()
    assert run({"path": str(link), "state": "absent"})["changed"] is False


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"path": "relative", "content": "", "mode": "0644"}, "relative: the path must be absolute"),
        ({"path": "{}/none/x", "content": "", "mode": "0644"}, "its directory does not exist; name it before the file"),
        ({"path": "{}/folder", "content": "", "mode": "0644"}, "a directory is in its place"),
        ({"path": "{}/folder", "state": "absent"}, "this module removes no directories"),
        ({"path": "{}/file", "state": "directory", "mode": "0755"}, "something that is no directory is in its place"),
        ({"path": "{}/x", "mode": "0644"}, "state is file but all of the following are missing: content"),
        ({"path": "{}/x", "content": ""}, "state is file but all of the following are missing: mode"),
        ({"path": "{}/x", "content": "", "mode": "0644", "validate": "/bin/true"}, "validate must hold %s"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, wanted: File, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    found = run({**wanted, "path": wanted["path"].replace("{}", str(tmp_path))})
    assert found["failed"] is True
    assert message in found["msg"]


def test_a_secret_is_never_readable_by_others_not_even_for_a_moment(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[int] = []
    change = AnsibleModule.set_fs_attributes_if_different

    def watch(module: Any, arguments: Any, changed: bool, *rest: Any, **more: Any) -> bool:
        seen.append(mode(Path(arguments["path"])))
        return bool(change(module, arguments, changed, *rest, **more))

    monkeypatch.setattr(AnsibleModule, "set_fs_attributes_if_different", watch)
    run(a_file(tmp_path / "secret", mode="0644"))
    assert seen == [0o600]


def test_the_contents_are_not_written_to_the_system_log(tmp_path: Path, monkeypatch: Any) -> None:
    logged: list[str] = []
    monkeypatch.setattr(AnsibleModule, "log", lambda _module, message, **_: logged.append(str(message)))
    run(a_file(tmp_path / "secret", "a secret text"))
    assert not [message for message in logged if "a secret text" in message]
