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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_code(place: Place, number: signal.Signals) -> None:
    name = f"signal-{number.name}"
    common = {"objective": "clm", "steps": STEPS, "checkpoints": 1, "averaged": number == signal.SIGTERM}
    settings = place.settings(name, name=name, **common)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, str(SCRIPT), json.dumps(settings)], env=environment, stderr=subprocess.PIPE, text=True)
    diary = Path(settings["diary"])
    while process.poll() is None and (not diary.exists() or diary.read_text().count("\n") < 21):
        time.sleep(0.05)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number, printed[-2000:]
    (folder,) = (place.folder / "runs" / name).iterdir()
    record = Record.load(folder / "record.json")
    (saved,) = (folder / "checkpoints").glob("step=*.ckpt")
    assert record.status == "interrupted" and 10 <= record.spent["steps"] < STEPS
    assert saved.name == f"step={int(record.spent['steps']):07d}.ckpt"
    start(place.settings(f"{name}-on", name=name, resume="must", **common))
    start(place.settings(f"{name}-straight", name=f"{name}-straight", **common))
    ended, straight = place.result(f"{name}-on")["weights"], place.result(f"{name}-straight")["weights"]
    assert all(torch.equal(ended[k], straight[k]) for k in straight)
