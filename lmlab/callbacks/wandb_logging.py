"""Weights & Biases: a run is logged there if it is asked for, to a local file unless a key is configured, and never with a prompt.

W&B by itself also records the command line with any key on it, host and user name, the console and the installed packages; all of
that is switched off, and the settings are sent with secrets hidden. Nothing here imports wandb before a logger is made.
"""

from __future__ import annotations

import logging
import netrc
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger

from lmlab.errors import ConfigError
from lmlab.run.directory import RunDirectory
from lmlab.run.redaction import redact
from lmlab.run.samples import Sample, read_samples

if TYPE_CHECKING:
    from argparse import Namespace

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]

DEFAULT_SERVER = "https://api.wandb.ai"


class RunWandbLogger(WandbLogger):
    """Lightning's logger, which also ends its W&B run, sends the samples and says how to upload what was kept here.

    Args:
        run: The run's folder; W&B's files lie in its `wandb/`. Its name is the W&B id, so that a resumed run continues the same one.
        config: Plain settings, secrets hidden already.
        mode: As `wandb.init` knows it.
        project: W&B project.
        labels: Group, job type, tags and notes of the W&B run.
    """

    def __init__(self, run: RunDirectory, config: dict[str, Any], mode: Mode, project: str, labels: dict[str, Any]) -> None:
        super().__init__(
            name=f"{run.name}/{run.path.name}",
            save_dir=run.path,
            id=run.path.name,
            project=project,
            config=config,
            mode=mode,
            settings=private_settings(),
            **labels,
        )
        del self._wandb_init["anonymous"]  # Lightning passes it on, and W&B warns that it has no effect
        self._run = run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Adds to the config, with secrets hidden."""
        values = params if isinstance(params, dict) else vars(params)
        super().log_hyperparams(redact(values))

    @rank_zero_only
    def log_samples(self, samples: Sequence[Sample]) -> None:
        """Sends what the model wrote, as a table: step, the whole text, and the model's part of it.

        Args:
            samples: Of all stages; a later table takes the place of an earlier one.
        """
        rows = []
        for sample in samples:
            own = " | ".join(piece.text for piece in sample.pieces if piece.by == "model")
            rows.append([sample.step, _sendable("".join(piece.text for piece in sample.pieces)), _sendable(own)])
        self.log_table("samples", columns=["step", "text", "written by the model"], data=rows)

    @rank_zero_only
    def log_checkpoint(self, path: Path, aliases: Sequence[str] = ()) -> None:
        """Sends a checkpoint as an artifact of type `model`.

        Args:
            path: The file or folder; it is not copied before it is sent.
            aliases: Further names, such as `best`.
        """
        import wandb

        artifact = wandb.Artifact(f"{self._run.name}-{self._run.path.name}", type="model")
        if path.is_dir():
            artifact.add_dir(str(path), name=path.name, policy="immutable")
        else:
            artifact.add_file(str(path), policy="immutable")
        self.experiment.log_artifact(artifact, aliases=list(aliases) or None)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the W&B run, so that a second run of this process is another one, and says how to upload an offline one."""
        if self._experiment is None:
            return
        samples = read_samples(self._run.samples_path)
        if samples:
            self.log_samples(samples)
        self._experiment.finish(exit_code=0 if status == "success" else 1)
        self._experiment = None
        line = sync_command(self._run)
        if line:
            log.info("to upload this run to W&B: %s", line)


def make_wandb_logger(
    run: RunDirectory,
    config: dict[str, Any],
    mode: Mode = "auto",
    project: str = "lmlab",
    tags: Sequence[str] = (),
    notes: str = "",
) -> RunWandbLogger:
    """Prepares logging to Weights & Biases; nothing is started before the first metric.

    Args:
        run: The run's folder.
        config: The resolved settings as plain values; secrets in them are hidden here.
        mode: `auto` is online if a key is configured, else offline. `disabled` takes everything and keeps nothing.
        project: W&B project.
        tags: Further tags, besides objective and corpus.
        notes: Free text, such as the run's question.

    Raises:
        ConfigError: If it is to be online and no key is configured.
    """
    if mode == "online" and not has_key():
        raise ConfigError(
            "W&B cannot be online",
            where="run.wandb",
            why="no key is configured, and lmlab does not ask for one while it runs",
            remedy="run `wandb login` once, or set WANDB_API_KEY, or set run.wandb: offline",
        )
    if mode == "auto":
        wanted = os.environ.get("WANDB_MODE", "").lower()
        mode = "disabled" if wanted == "disabled" else "offline" if wanted in ("offline", "dryrun") or not has_key() else "online"
    model, data = config.get("model") or {}, config.get("data") or {}
    objective = str(model.get("class_path", "")).rpartition(".")[2]
    corpus = (data.get("init_args") or data).get("corpus")
    shown = [tag for tag in (objective, corpus if isinstance(corpus, str) else "", *tags) if 0 < len(tag) <= 64]  # W&B's limit
    labels = {"group": run.name, "job_type": objective or None, "tags": list(dict.fromkeys(redact(shown))), "notes": notes or None}
    return RunWandbLogger(run, redact(config), mode, project, labels)


def private_settings() -> Any:
    """W&B's settings with everything off that tells about the person or the machine; speed and memory are still measured."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="",
        username="",
        email="",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def has_key() -> bool:
    """Whether a W&B key is configured, in the environment or where `wandb login` writes it; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY", "").strip():
        return True
    server = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if server in netrc.netrc(path).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def sync_command(run: RunDirectory) -> str | None:
    """The exact command that uploads what W&B has kept of a run on this machine; None if there is nothing to upload.

    Args:
        run: The run's folder. A run that was resumed has several parts, which belong to one command.
    """
    parts = [part for part in sorted((run.path / "wandb").glob("offline-run-*")) if not any(part.glob("*.synced"))]
    quote = '"' if any(" " in str(part) for part in parts) else ""
    return " ".join(["wandb sync", *(f"{quote}{part}{quote}" for part in parts)]) if parts else None


def _sendable(text: str) -> str:
    """Text that is valid UTF-8; half a surrogate pair would stop W&B's writer."""
    return text.encode("utf-8", "replace").decode()
