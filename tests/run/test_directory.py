"""Where runs lie, what they may be called, and how they are found again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmlab.errors import CheckpointError, ConfigError
from lmlab.run.directory import RunDirectory, create_run, runs_root
from lmlab.run.find import find_checkpoint, find_run, list_runs, unfinished
from lmlab.run.record import Record, now


def make(root: Path, name: str, status: str = "finished", config_hash: str = "h", checkpoints: tuple[str, ...] = ("last",)) -> RunDirectory:
    run = create_run(root, name, 0)
    Record(name=name, seed=0, status=status, started=now(), config_hash=config_hash).save(run.record_path)  # type: ignore[arg-type]
    for stem in checkpoints:
        (run.checkpoints / f"{stem}.ckpt").write_bytes(b"x")
    return run


def test_a_run_lies_below_its_name_and_says_when_and_which_seed(tmp_path: Path) -> None:
    run = create_run(tmp_path, "mlm-base.v2", 17)
    assert run.path.parent == tmp_path.resolve() / "mlm-base.v2"
    assert re.fullmatch(r"20\d{6}T\d{6}Z-17-[0-9a-f]{6}", run.path.name)
    assert run.name == "mlm-base.v2"
    assert run.checkpoints.is_dir() and run.plots.is_dir()
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "plots"]


def test_fifty_launches_at_once_get_fifty_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        paths = [r.path for r in pool.map(lambda _: create_run(tmp_path, "x", 0), range(50))]
    assert len(set(paths)) == 50 == len(list((tmp_path / "x").iterdir()))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/abs", "a b", "-x", ".hidden", "x" * 81, "名", "a\n", "a\x00", "~", "$HOME"]
)
def test_a_name_that_could_leave_the_folder_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    root = tmp_path / "runs"
    with pytest.raises(ConfigError):
        create_run(root, name, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="would not lie in"):
        create_run(tmp_path / "runs", "x", 0)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_lab_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make"):
        create_run(tmp_path / "file", "x", 0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").touch()
    with pytest.raises(ConfigError, match="cannot make"):
        create_run(tmp_path / "runs", "x", 0)


def test_the_root_comes_from_the_call_then_the_environment_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_RUNS", str(tmp_path / "env"))
    assert runs_root(tmp_path / "call") == tmp_path / "call"
    assert runs_root() == tmp_path / "env"
    monkeypatch.delenv("LMLAB_RUNS")
    assert runs_root() == Path("runs")


def test_a_name_means_its_newest_finished_run(tmp_path: Path) -> None:
    make(tmp_path, "x")
    second = make(tmp_path, "x")
    make(tmp_path, "x", status="failed")
    make(tmp_path, "y")
    assert find_run("x", tmp_path).path == second.path


def test_a_folder_a_file_in_it_and_a_part_of_the_path_mean_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "runs", "x", status="running")
    monkeypatch.chdir(tmp_path)
    for spec in (run.path, str(run.path), run.checkpoints / "last.ckpt", f"x/{run.path.name}", f"runs/x/{run.path.name}/"):
        assert find_run(spec).path.resolve() == run.path
    done = make(tmp_path / "runs", "x")
    assert find_run("runs/x").path.resolve() == done.path


def test_a_folder_here_of_the_same_name_that_is_no_run_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "runs", "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert find_run("data").path.resolve() == run.path


def test_what_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as empty:
        find_run("x", tmp_path)
    assert "no runs in" in empty.value.remedy
    make(tmp_path, "roberta")
    make(tmp_path, "gpt", status="interrupted")
    with pytest.raises(CheckpointError) as close:
        find_run("robeta", tmp_path)
    assert close.value.remedy == "did you mean 'roberta'?"
    with pytest.raises(CheckpointError) as still:
        find_run("gpt", tmp_path)
    assert "no run of 'gpt' has finished" in str(still.value) and str(tmp_path / "gpt") in still.value.remedy
    with pytest.raises(CheckpointError, match=r"no run '\.\./\.\./etc'"):
        find_run("../../etc", tmp_path)
    (tmp_path / "loose.ckpt").touch()
    with pytest.raises(CheckpointError, match="does not lie in a run"):
        find_run(tmp_path / "loose.ckpt", tmp_path)
    with pytest.raises(CheckpointError, match=r"no gone\.ckpt"):
        find_run(tmp_path / "gone.ckpt", tmp_path)


def test_best_then_the_newest_step(tmp_path: Path) -> None:
    run = make(tmp_path, "x", checkpoints=("step=9", "step=10"))
    assert find_checkpoint("x", root=tmp_path).name == "step=10.ckpt"  # by number, not by spelling
    (run.checkpoints / "last.ckpt").touch()  # nobody writes that
    assert find_checkpoint(run, "last").name == "step=10.ckpt"
    (run.checkpoints / "best.ckpt").touch()
    assert find_checkpoint(run.path, root=tmp_path).name == "best.ckpt"
    assert find_checkpoint(run, "step=9") == run.checkpoints / "step=9.ckpt"
    assert find_checkpoint(run.checkpoints / "step=9.ckpt") == run.checkpoints / "step=9.ckpt"
    assert find_checkpoint(run.checkpoints / "step=9.ckpt", "last") == run.checkpoints / "step=10.ckpt"
    assert list(run.steps()) == [9, 10]


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    run = make(tmp_path, "x", checkpoints=("step=100", "last"))
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(run, "step=1000")
    assert error.value.remedy == "did you mean 'step=100'?"
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        find_checkpoint(run, "../../secret")
    with pytest.raises(CheckpointError, match="not saved anything"):
        find_checkpoint(make(tmp_path, "y", checkpoints=()))


def test_auto_resume_takes_the_newest_that_fits(tmp_path: Path) -> None:
    assert unfinished("x", "h", tmp_path) is None
    make(tmp_path, "x", status="interrupted")
    newest = make(tmp_path, "x", status="running")  # a kill leaves `running` behind
    make(tmp_path, "x", status="finished")
    make(tmp_path, "x", status="failed", config_hash="other")
    make(tmp_path, "x", status="failed", checkpoints=())
    make(tmp_path, "y", status="failed")
    broken = make(tmp_path, "x", status="failed")
    broken.record_path.write_text("{")
    found = unfinished("x", "h", tmp_path)
    assert found is not None and found.path.name == newest.path.name


def test_a_run_another_process_works_on_is_neither_resumed_nor_claimed_until_that_process_is_killed(tmp_path: Path) -> None:
    run = make(tmp_path, "x", status="running")
    assert not run.is_claimed()
    code = (
        "import sys, time; from pathlib import Path; from lmlab.run.directory import RunDirectory\n"
        "lock = RunDirectory(Path(sys.argv[1])).claim(); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert run.is_claimed()
        assert unfinished("x", "h", tmp_path) is None
        with pytest.raises(ConfigError, match="still going on"):
            run.claim()
        process.kill()
    assert not run.is_claimed()
    found = unfinished("x", "h", tmp_path)
    assert found is not None
    lock = found.claim()
    assert run.is_claimed()
    lock.release()


def test_listing_is_oldest_first_and_ignores_what_is_no_run(tmp_path: Path) -> None:
    runs = [make(tmp_path, name) for name in ("b", "a", "b")]
    (tmp_path / "b" / "notes").mkdir()
    (tmp_path / ".trash").mkdir()
    (tmp_path / "file").touch()
    assert [r.path.name for r in list_runs(tmp_path)] == [r.path.name for r in runs]
    assert [r.path.name for r in list_runs(tmp_path, "b")] == [runs[0].path.name, runs[2].path.name]
    assert list_runs(tmp_path / "none") == []


def test_runs_are_found_without_torch() -> None:
    code = (
        "import sys, lmlab.run.find, lmlab.run.record, lmlab.run.metrics; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert out.stdout.strip() == "[]"
