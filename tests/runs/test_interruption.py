"""A signal ends a run between two steps, with a checkpoint, and the run goes on from there to the same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lmlab.run.record import Record
from tests.runs.conftest import REPOSITORY, SCRIPT, Place, start

STEPS = 300


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_saves_and_leaves_with_its_code(place: Place, number: signal.Signals, code: int) -> None:
    name = f"signal-{number.name}"
    common = {"objective": "clm", "steps": STEPS, "checkpoints": 1, "averaged": number == signal.SIGTERM}
    settings = place.settings(name, name=name, num_workers=2, **common)
    slurm = {"SLURM_JOB_NAME": "job", **dict.fromkeys(("SLURM_JOB_ID", "SLURM_NTASKS"), "1")} if number == signal.SIGUSR1 else {}
    slurm |= dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0") if slurm else {}
    environment = {**os.environ, **slurm, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps(settings)], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    diary = Path(settings["diary"])
    while process.poll() is None and (not diary.exists() or diary.read_text().count("\n") < 21):
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does: the loader's workers, too
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code, printed[-2000:]
    assert "this step is finished, then saved" in printed and f"to go on: lmlab fit --resume {place.folder / 'runs' / name}" in printed
    (folder,) = (place.folder / "runs" / name).iterdir()
    record = Record.load(folder / "record.json")
    (saved,) = (folder / "checkpoints").glob("step=*.ckpt")
    assert record.status == "interrupted" and 10 <= record.spent["steps"] < STEPS
    assert not [*folder.rglob("hpc_*")], "a checkpoint of Lightning's own"
    assert saved.name == f"step={int(record.spent['steps']):07d}.ckpt"
    start(place.settings(f"{name}-on", name=name, resume="must", **common))
    start(place.settings(f"{name}-straight", name=f"{name}-straight", **common))
    ended, straight = place.result(f"{name}-on")["weights"], place.result(f"{name}-straight")["weights"]
    assert all(torch.equal(ended[k], straight[k]) for k in straight)
