"""The job files for clusters, as far as they can be tried without one: SLURM's commands are stand-ins, the ranks are real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmlab.run.find import list_runs
from lmlab.run.record import Record
from tests.runs.conftest import REPOSITORY, Place
from tests.runs.launches import SECONDS, Launch, write_config

LAUNCH = REPOSITORY / "configs/launch"
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> {calls}
if [[ "$1" == show ]]; then echo localhost; fi
"""


class Job(Launch):
    """The batch script, run as SLURM runs it on one node."""

    def __init__(self, place: Place, config: Path, *arguments: str, restarts: int = 0) -> None:
        folder = place.folder / "slurm"
        folder.mkdir(exist_ok=True)
        self.calls = folder / "calls"
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL.format(calls=self.calls))):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        slurm = {"JOB_ID": "4711", "JOB_NODELIST": "node[1]", "JOB_NUM_NODES": "1", "NTASKS": "1", "PROCID": "0"}
        variables = {f"SLURM_{k}": v for k, v in {**slurm, "RESTART_COUNT": str(restarts), "CPUS_PER_TASK": "2"}.items()}
        python = Path(sys.executable).parent  # the script takes the `python` of the environment that is active
        self.environment = {**variables, "RANKS_PER_NODE": "2", "PATH": f"{folder}:{python}:{os.environ['PATH']}"}
        super().__init__(config, *arguments)

    def command(self, arguments: tuple[str, ...], launcher: tuple[str, ...]) -> list[str]:
        return ["bash", str(LAUNCH / "slurm.sbatch"), "-c", str(self.config), "--allow", "tests", *arguments]


@pytest.fixture
def jobs() -> Iterator[list[Launch]]:
    started: list[Launch] = []
    yield started
    for job in started:
        job.end()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_preempted_job_saves_is_queued_again_and_goes_on(place: Place, jobs: list[Launch]) -> None:
    more = ("--data.num_workers=2",)
    config = write_config(place, "preempted", 40, {"devices": "auto"}, pause=0.2)
    jobs.append(first := Job(place, config, *more))
    first.until_step(2)
    first.process.terminate()  # the script alone, as `--signal=B:TERM@120` does
    assert first.wait() == 0, first.printed()
    assert first.seconds_until_gone() < 1
    assert first.calls.read_text().splitlines() == ["show hostnames node[1]", "requeue 4711"]
    assert first.record().status == "interrupted"
    assert max(first.run().steps()) == first.record().spent["steps"] < 40
    jobs.append(again := Job(place, config, *more, restarts=1))
    assert again.wait() == 0, again.printed()
    assert again.calls.read_text().count("requeue") == 1
    jobs.append(straight := Launch(write_config(place, "not-preempted", 40), *more))
    assert straight.wait() == 0, straight.printed()
    one, other = again.weights(), straight.weights()
    assert all(torch.equal(one[name], other[name]) for name in other)
    [run] = list_runs(again.root, again.name)
    assert Record.load(run.record_path).status == "finished"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["DDP", "FSDP", "ZeRO"])
def test_two_machines_go_on_together_after_a_rank_of_one_was_killed(place: Place, jobs: list[Launch], strategy: str) -> None:
    """Two launchers of one rank each, which know of each other by the rendezvous alone; and they train what two ranks of one machine do."""
    name, trainer = f"machines-{strategy}", {"devices": "auto", "strategy": {"class_path": f"lmlab.strategies.{strategy}"}}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    machine = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-id", name)
    machine += ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}")
    config = write_config(place, name, trainer=trainer, step=13, rank=1)
    jobs.extend(Launch(config, "--resume", "auto", launcher=machine) for _ in range(2))
    one, other = jobs
    assert (one.wait(), other.wait()) == (0, 0), one.printed() + other.printed()
    assert (one.printed() + other.printed()).count("going on with") == 1
    jobs.append(straight := Launch(write_config(place, f"{name}-straight", trainer=trainer | {"devices": 2})))
    assert straight.wait() == 0, straight.printed()
    assert one.record().spent["steps"] == 20
    weights, expected = one.weights(), straight.weights()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_failed_job_is_not_queued_again(tmp_path: Path) -> None:
    for name, text in (("srun", "#!/bin/bash\nexit 7\n"), ("scontrol", SCONTROL.format(calls=tmp_path / "calls"))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_NUM_NODES": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch")], env={**os.environ, **variables}, timeout=SECONDS, check=False)
    assert done.returncode == 7
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_the_kubernetes_job_is_one_and_its_numbers_agree() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yml").read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec: dict[str, Any] = job["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    options = dict(word[2:].split("=", 1) for word in container["args"] if word.startswith("--") and "=" in word)
    assert spec["completions"] == spec["parallelism"] == int(options["nnodes"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options["nproc-per-node"])
    name, subdomain = job["metadata"]["name"], pod["subdomain"]
    assert options["rdzv-endpoint"].startswith(f"{name}-0.{subdomain}:") and service["metadata"]["name"] == subdomain
    assert service["spec"]["selector"]["job-name"] == name
    waits = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(waits["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["args"][-2:] == ["--resume", "auto"]
