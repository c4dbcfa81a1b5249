"""Runs of several ranks from the command line, watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from lmlab.run.directory import RunDirectory
from lmlab.run.find import list_runs
from lmlab.run.record import Record
from tests.runs.conftest import REPOSITORY, Place

MARK = "LMLAB_TEST_LAUNCH"
SECONDS = 180  # for what takes ten on a machine of its own
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def write_config(place: Place, name: str, steps: int = 20, trainer: dict[str, Any] | None = None, **failing: Any) -> Path:
    """A toy run on two ranks of a CPU, with a checkpoint every other step, as `lmlab fit -c` reads it."""
    callbacks = [{"class_path": "tests.runs.failing.Failing", "init_args": failing}]
    settings = {
        "run": {"name": name, "root": str(place.folder / "launches")},
        "tokenizer": {"path": str(place.tokenizer), "num_sentinels": 8},
        "model": {
            "class_path": "lmlab.objectives.clm.CLM",
            "init_args": {"length": 32, "backbone": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.1}},
        },
        "data": {
            "class_path": "lmlab.data.module.CorpusModule",
            "init_args": {
                "corpus": str(place.corpus),
                "global_batch_size": 8,
                "eval_examples": 8,
                "cache_dir": str(place.folder / "cache"),
                "store": {"val_share": 0.3},
            },
        },
        "budget": {"steps": steps, "validations": 1, "checkpoints": steps // 2},
        "trainer": {"accelerator": "cpu", "devices": 2, "enable_progress_bar": False, "callbacks": callbacks, **(trainer or {})},
    }
    path = place.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


class Launch:
    """A command in a process of its own, and all that comes of it.

    Args:
        config: Its settings.
        arguments: Further arguments.
        launcher: What starts the ranks; nothing for lmlab itself.
    """

    environment: dict[str, str] = {}  # noqa: RUF012 - what a kind of launch adds

    def __init__(self, config: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> None:
        self.mark, self.config = uuid.uuid4().hex, config
        self.output = config.with_name(f"{self.mark}.log")
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))["run"]
        self.root, self.name = settings["root"], settings["name"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), MARK: self.mark, **self.environment}
        command = self.command(arguments, launcher)
        with self.output.open("w") as file:
            self.process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)

    def command(self, arguments: tuple[str, ...], launcher: tuple[str, ...]) -> list[str]:
        return [sys.executable, *launcher, "-m", "lmlab", "fit", "-c", str(self.config), "--allow", "tests", *arguments]

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> dict[int, dict[str, str]]:
        """Processes of this launch that live, with what they find in their environment."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = dict(v.partition("=")[::2] for v in (folder / "environ").read_text(errors="replace").split("\0"))
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if variables.get(MARK) == self.mark and state != "Z":
                found[int(folder.name)] = variables
        return found

    def rank(self, rank: int) -> int:
        """The process of a rank: the oldest that bears its number."""
        return min(pid for pid, variables in self.alive().items() if variables.get("RANK") == str(rank))

    def run(self) -> RunDirectory:
        [run] = list_runs(self.root, self.name)
        return run

    def record(self) -> Record:
        return Record.load(self.run().record_path)

    def until(self, done: Callable[[], Any]) -> float:
        """Waits, and returns for how many seconds."""
        start = time.monotonic()
        while not done():
            assert time.monotonic() - start < SECONDS, self.printed()
            time.sleep(0.05)
        return time.monotonic() - start

    def until_step(self, step: int) -> None:
        self.until(
            lambda: self.process.poll() is not None or any(max(r.steps(), default=0) >= step for r in list_runs(self.root, self.name))
        )
        assert self.process.poll() is None, self.printed()

    def seconds_until_gone(self) -> float:
        return self.until(lambda: self.process.poll() is not None and not self.alive())

    def weights(self) -> dict[str, torch.Tensor]:
        steps = self.run().steps()
        return torch.load(steps[max(steps)], weights_only=True)["state_dict"]

    def end(self) -> None:
        """Leaves nothing behind, whatever the test found."""
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
