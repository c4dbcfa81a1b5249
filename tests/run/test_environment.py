"""`environment.json`: enough to repeat a run, nothing about the person."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from lmlab.run.environment import describe_environment, git_state, write_environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_it_holds_versions_machine_and_a_command_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MY_TOKEN", "do-not-look")
    write_environment(tmp_path / "environment.json", ["lmlab", "fit", "--api_key=hidden-one"])
    content = json.loads((tmp_path / "environment.json").read_text())
    assert content["command"] == ["lmlab", "fit", "--api_key=***"]
    assert content["packages"]["torch"] == torch.__version__
    assert content["python"] == platform.python_version()
    assert content["torch"]["threads"] == torch.get_num_threads()
    assert content["machine"]["cores"] == os.cpu_count() and content["machine"]["memory_bytes"] > 2**28
    assert content["variables"]["OMP_NUM_THREADS"] == "1"
    text = json.dumps(content)
    assert "do-not-look" not in text and "hidden-one" not in text and str(Path.cwd()) not in text


def test_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: pytest.fail("the host's name was asked for"))
    monkeypatch.setattr(getpass, "getuser", lambda: pytest.fail("the user's name was asked for"))
    monkeypatch.setenv("USER", "marmaduke")
    monkeypatch.setenv("HOSTNAME", "marmaduke-laptop")
    assert "marmaduke" not in json.dumps(describe_environment(["/home/marmaduke/bin/lmlab", "fit"]))


def test_git_tells_the_commit_and_whether_tracked_files_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # before the first commit
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    (tmp_path / "untracked").touch()
    clean = git_state(tmp_path)
    assert clean is not None and clean.commit == git(tmp_path, "rev-parse", "HEAD") and not clean.dirty
    (tmp_path / "a").write_text("2")
    changed = git_state(tmp_path)
    assert changed is not None and changed.dirty


def test_without_git_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
