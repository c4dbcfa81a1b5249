"""What is really in W&B's local file, read with a reader of the file format that does not come from lmlab or from W&B."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmlab.callbacks.wandb_logging import has_key, make_wandb_logger, sync_command
from lmlab.errors import ConfigError
from lmlab.run.directory import RunDirectory, create_run

BLOCK, HEADER = 32768, 7

RUN_SCRIPT = """
import sys
from pathlib import Path
from lmlab.callbacks.wandb_logging import make_wandb_logger
from lmlab.run.directory import RunDirectory
from lmlab.run.samples import Piece, Sample, append_samples

run = RunDirectory(Path(sys.argv[1]))
first = int(sys.argv[2])
config = {
    "model": {"class_path": "lmlab.objectives.mlm.MLM", "init_args": {"mask_token": "[MASK]", "num_tokens": 5}},
    "data": {"init_args": {"corpus": "austen"}},
    "hub": {"api_key": "plain-secret-1", "token": "hf_" + "x" * 30},
}
logger = make_wandb_logger(run, config, mode="auto", notes="is it so?")
logger.log_hyperparams({"late": 7, "password": "plain-secret-2"})
for step in range(first, first + 3):
    logger.log_metrics({"train/loss": 2.0 / step}, step)
append_samples(run.samples_path, [Sample(step=first, pieces=(Piece(text="It is a "), Piece(text="truth\\ud800", by="model")))])
logger.log_checkpoint(run.checkpoints / "best.ckpt", ["best"])
logger.finalize("success")
"""


def records(path: Path) -> Iterator[Any]:
    """LevelDB's log format: blocks of 32 KiB, each record cut into pieces with a checksum, a length and a kind."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, pieces = HEADER, b""
    while at + HEADER <= len(content):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        checksum, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        body = content[at + HEADER : at + HEADER + length]
        assert zlib.crc32(bytes([kind]) + body) == checksum
        at += HEADER + length
        pieces = pieces + body if kind in (3, 4) else body
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str, list[Any]]:
    folder = tmp_path_factory.mktemp("wandb")
    run = create_run(folder / "runs", "mlm", 3)
    (run.checkpoints / "best.ckpt").write_bytes(b"weights")
    environment = {
        "USER": "marmaduke",
        "LOGNAME": "marmaduke",
        "HOME": str(folder),
        "NETRC": str(folder / "none"),
        "PATH": "/usr/bin:/bin",
        "WANDB_DATA_DIR": str(folder / "d"),
    }
    command = [sys.executable, "-c", RUN_SCRIPT, str(run.path)]
    out = ""
    for first in ("1", "4"):  # the second is a resumed run
        done = subprocess.run(
            [*command, first, "--api_key=plain-secret-3"],
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        out += done.stdout + done.stderr
    found = [record for path in sorted(run.path.glob("wandb/offline-run-*/*.wandb")) for record in records(path)]
    return run, out, found


@pytest.mark.slow
def test_settings_metrics_samples_and_checkpoint_are_in_the_file(offline: tuple[RunDirectory, str, list[Any]]) -> None:
    run, _, found = offline
    started = next(r.run for r in found if r.HasField("run"))
    config = {item.key: json.loads(item.value_json) for r in found if r.HasField("run") for item in r.run.config.update}
    assert started.project == "lmlab" and started.run_id == run.path.name and started.run_group == "mlm" and started.job_type == "MLM"
    assert list(started.tags) == ["MLM", "austen"] and started.notes == "is it so?"
    assert config["model"]["init_args"] == {"mask_token": "[MASK]", "num_tokens": 5}
    rows = [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item} for r in found if r.HasField("history")]
    assert [(row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (s, pytest.approx(2 / s)) for s in range(1, 7)
    ]
    tables = [json.loads(path.read_text()) for path in sorted(run.path.glob("wandb/offline-run-*/files/media/table/*.table.json"))]
    assert tables[0]["columns"] == ["step", "text", "written by the model"]
    assert [1, "It is a truth?", "truth?"] in tables[0]["data"]
    assert max(len(table["data"]) for table in tables) == 2  # the resumed part knows the samples of the first
    artifacts = [r.request.log_artifact.artifact for r in found if r.HasField("request") and r.request.HasField("log_artifact")]
    artifacts += [r.artifact for r in found if r.HasField("artifact")]
    models = [a for a in artifacts if a.type == "model"]
    assert models and models[0].name == f"mlm-{run.path.name}" and "best" in models[0].aliases
    assert models[0].manifest.contents[0].size == len(b"weights")


@pytest.mark.slow
def test_no_secret_no_name_and_no_command_line_is_in_any_file(offline: tuple[RunDirectory, str, list[Any]]) -> None:
    run, _, found = offline
    files = [path for path in (run.path / "wandb").rglob("*") if path.is_file() and path.suffix in (".wandb", ".json", ".txt", ".yaml")]
    assert any(path.suffix == ".wandb" for path in files)
    content = b"".join(path.read_bytes() for path in files)
    for secret in (b"plain-secret", b"hf_xxxx", b"api_key=", b"marmaduke"):
        assert secret not in content
    started = [r.run for r in found if r.HasField("run")]
    assert all(not r.host for r in started)
    config = {item.key: json.loads(item.value_json) for r in started for item in r.config.update}
    assert config["hub"] == {"api_key": "***", "token": "***"}
    late = [json.loads(i.value_json) for r in found if r.HasField("config") for i in r.config.update if i.key == "password"]
    assert late and set(late) == {"***"}


@pytest.mark.slow
def test_a_resumed_run_is_one_run_in_two_parts_and_one_command_uploads_both(offline: tuple[RunDirectory, str, list[Any]]) -> None:
    run, out, found = offline
    parts = sorted((run.path / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert {r.run.run_id for r in found if r.HasField("run")} == {run.path.name}
    assert sync_command(run) == f"wandb sync {parts[0]} {parts[1]}"
    next(parts[0].glob("*.wandb")).with_suffix(".wandb.synced").touch()
    assert sync_command(run) == f"wandb sync {parts[1]}"
    assert "login" not in out.lower() and "warn" not in out.lower()


def test_online_without_a_key_is_refused_and_auto_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run = create_run(tmp_path, "x", 0)
    with pytest.raises(ConfigError, match="cannot be online"):
        make_wandb_logger(run, {}, mode="online")
    assert make_wandb_logger(run, {})._wandb_init["mode"] == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_key()
    assert make_wandb_logger(run, {})._wandb_init["mode"] == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert make_wandb_logger(run, {})._wandb_init["mode"] == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_key()
    assert sync_command(run) is None


@pytest.mark.slow
def test_importing_the_module_does_not_import_wandb() -> None:
    code = "import sys, lmlab.callbacks.wandb_logging; print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_checkpoint_that_is_a_folder_is_sent_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(tmp_path / "runs", "mlm", 3)
    folder = run.checkpoints / "best.ckpt"
    folder.mkdir()
    for name in ("content.pt", "shard-1.safetensors"):
        (folder / name).write_bytes(name.encode())
    sent: list[Any] = []
    logger: Any = make_wandb_logger(run, {}, mode="offline")
    monkeypatch.setattr(type(logger), "experiment", SimpleNamespace(log_artifact=lambda artifact, aliases: sent.append(artifact)))
    logger.log_checkpoint(folder, ["best"])
    assert sorted(sent[0].manifest.entries) == ["best.ckpt/content.pt", "best.ckpt/shard-1.safetensors"]
