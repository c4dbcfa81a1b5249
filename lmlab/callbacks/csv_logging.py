"""The Lightning logger behind `metrics.csv`.

Lightning's own CSVLogger deletes the file of an earlier run in the same folder, which a resumed run needs, and keeps up to a
hundred rows in memory, which a kill loses.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from lmlab.run.directory import RunDirectory
from lmlab.run.metrics import STEP, MetricsWriter


class MetricsCsvLogger(Logger):
    """Writes every logged metric to the run's `metrics.csv`, at once, one row a step.

    Counts that must stay exact (tokens, FLOPs) are best given to `log_metrics` directly: `LightningModule.log` turns every
    value into a float32.

    Args:
        run: The run's folder; an existing file is continued.
    """

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self._run = run
        self._writer: MetricsWriter | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self._run.name

    @property
    def version(self) -> str:
        """The folder of this run among those of its name."""
        return self._run.path.name

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._run.path)

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsWriter:
        """The writer; a dummy on ranks other than 0."""
        if self._writer is None:
            self._writer = MetricsWriter(self._run.metrics_path)
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Writes one step's metrics.

        Args:
            metrics: Numbers or tensors of one element, by name. `epoch` is left out: an epoch is a matter of the data's order here.
            step: Optimiser step; without it `metrics["step"]`, else the step written last plus one.
        """
        values = {name: float(value) for name, value in metrics.items() if name not in (STEP, "epoch")}
        if step is None:
            step = int(metrics.get(STEP, self.experiment.last_step + 1))
        self.experiment.append(step, values)

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Forgets rows after the checkpoint that the run continues from.

        Args:
            step: The last step to keep, in the counting of `log_metrics`. Lightning counts from 0 there: the first update is
                row 0, so a checkpoint with `global_step` N keeps rows up to N - 1, unless `step` is logged by hand.
        """
        self.experiment.drop_after(step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the resolved configuration lies in `config.yaml`."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
