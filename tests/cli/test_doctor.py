"""`lmlab doctor` says what is there, what is missing, and what is wrong."""

from __future__ import annotations

import importlib.util
import json
import platform
from pathlib import Path

import pytest
import torch

from lmlab.cli import doctor


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "LMLAB_RUNS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_a_machine_that_runs_these_tests_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {finding["name"]: finding for finding in told["findings"]}
    assert told["healthy"] is True
    assert found["python"]["value"] == platform.python_version()
    assert f"torch {torch.__version__}" in found["packages"]["value"]
    assert "ddp" in found["strategies"]["value"]
    assert "gloo" in found["strategies"]["value"]


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    doctor.examine()
    assert list(tmp_path.iterdir()) == []


def test_unsafe_loading_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert doctor.main([]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in line)
    assert line.startswith("BAD")


def test_a_missing_extra_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "pyarrow" else real(name, package))
    extra = findings()["extra parquet"]
    assert (extra.state, extra.remedy) == ("note", "pip install 'lmlab[parquet]'")


def test_every_extra_of_the_package_is_looked_at() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    names = {line.partition(" = ")[0] for line in section.splitlines() if " = [" in line}
    assert names - {"dev"} == set(doctor.EXTRAS)


def test_wandb_is_online_with_a_key_which_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "no key" in findings()["wandb"].value
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789abcdef", encoding="utf-8")
    assert findings()["wandb"].state == "ok"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert not any("0123456789abcdef" in str(finding) for finding in doctor.examine())
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "offline" in findings()["wandb"].value


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    threads = findings()["threads"]
    assert threads.state == "note"
    assert "OMP_NUM_THREADS" in threads.remedy
