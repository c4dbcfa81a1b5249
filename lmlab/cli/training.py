"""`lmlab fit|validate|test|predict`: from the command line to a run. Torch is imported when the settings have been looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lmlab.cli.allowlist import admit
from lmlab.cli.guide import guide
from lmlab.cli.overlays import check_base
from lmlab.errors import ConfigError
from lmlab.run.directory import RunDirectory
from lmlab.run.find import find_checkpoint, find_run

if TYPE_CHECKING:
    from lmlab.cli.running import LabCLI

ALIASES = {"--resume": "--run.resume", "--name": "--run.name"}
ONE_PROCESS = ("--trainer.strategy=auto", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.callbacks=null")
"""How a run is measured whatever it was trained on, unless something else is asked for; on several ranks the numbers are the same."""


class Asked(NamedTuple):
    """What a measuring command is to look at.

    Args:
        run: The run, None if only configs are given.
        checkpoint: Its checkpoint.
        rest: The other arguments.
    """

    run: RunDirectory | None
    checkpoint: Path | None
    rest: list[str]


def fit_main(argv: list[str]) -> int:
    """Trains.

    Args:
        argv: What follows `lmlab fit`.

    Returns:
        The exit code.
    """
    return 0 if _helped("fit", argv) else _run("fit", _with_own_config(_with_aliases(argv)))[0]


def validate_main(argv: list[str]) -> int:
    """Measures a run on its validation text and prints a table.

    Args:
        argv: What follows `lmlab validate`.

    Returns:
        The exit code.
    """
    return _measure("validate", argv)


def test_main(argv: list[str]) -> int:
    """Measures a run on its test text and prints a table.

    Args:
        argv: What follows `lmlab test`.

    Returns:
        The exit code.
    """
    return _measure("test", argv)


def predict_main(argv: list[str]) -> int:
    """Writes down what a run predicts for its test text: `predictions.jsonl` in the run's folder.

    Args:
        argv: What follows `lmlab predict`.

    Returns:
        The exit code.
    """
    if _helped("predict", argv):
        return 0
    code, cli = _run_asked("predict", _asked(argv))
    if cli is not None and cli.trainer.is_global_zero:
        print(cli.predictions)
    return code


def _measure(command: str, argv: list[str]) -> int:
    if _helped(command, argv):
        return 0
    code, cli = _run_asked(command, _asked(argv))
    if cli is not None and cli.trainer.is_global_zero:
        _print_metrics({name: float(value) for name, value in cli.trainer.callback_metrics.items() if name != "step"}, cli.measured)
    return code


def _helped(command: str, argv: Sequence[str]) -> bool:
    """Prints the short guide; `--help all` is left to the parser."""
    wanted = [i for i, token in enumerate(argv) if token in ("-h", "--help")]
    if not wanted or argv[wanted[0] + 1 : wanted[0] + 2] == ["all"]:
        return False
    print(guide(command))
    return True


def _with_aliases(argv: Sequence[str]) -> list[str]:
    arguments = [token for i, token in enumerate(argv) if not (token == "all" and argv[i - 1] in ("-h", "--help"))]
    for i, token in enumerate(arguments):
        name, equals, value = token.partition("=")
        if name in ALIASES:
            arguments[i] = f"{ALIASES[name]}{equals}{value}"
    return arguments


def _with_own_config(arguments: list[str]) -> list[str]:
    """`--resume RUN` without any `-c` goes on with the settings of that run."""
    resumed = [
        token.partition("=")[2] or "".join(arguments[i + 1 : i + 2]) for i, token in enumerate(arguments) if _is(token, "--run.resume")
    ]
    if (
        not resumed
        or resumed[-1] in ("never", "auto", "must")
        or any(_is(token, "--config") or token.startswith("-c") for token in arguments)
    ):
        return arguments
    return ["-c", str(find_run(resumed[-1]).config_path), *arguments]


def _is(token: str, option: str) -> bool:
    return token.partition("=")[0] == option


def _asked(argv: Sequence[str]) -> Asked:
    """Takes RUN and `--checkpoint` out of the arguments; RUN stands before the settings."""
    arguments = _with_aliases(argv)
    which = None
    for i, token in enumerate(arguments):
        name, equals, value = token.partition("=")
        if name == "--checkpoint":
            which = value if equals else "".join(arguments[i + 1 : i + 2])
            del arguments[i : i + (1 if equals else 2)]
            break
    if not arguments or arguments[0].startswith("-"):
        if which is not None:
            raise ConfigError("--checkpoint needs a RUN", where="--checkpoint", remedy="lmlab validate RUN --checkpoint best")
        return Asked(None, None, arguments)
    spec = arguments.pop(0)
    return Asked(find_run(spec), find_checkpoint(spec, which), arguments)


def _run_asked(command: str, asked: Asked) -> tuple[int, LabCLI | None]:
    if asked.run is None:
        return _run(command, asked.rest)
    settings = ["-c", str(asked.run.config_path), *ONE_PROCESS, "--ckpt_path", str(asked.checkpoint)]
    return _run(command, [*settings, *asked.rest])


def _run(command: str, arguments: Sequence[str]) -> tuple[int, LabCLI | None]:
    """Looks at the settings, then imports what they need and does it."""
    admitted = admit([command, *arguments])
    check_base(admitted.configs, admitted.arguments)
    from lmlab.cli.running import LabCLI
    from lmlab.quiet import quiet

    quiet()
    try:
        return 0, LabCLI(admitted)
    except SystemExit as stop:  # --print_config, --help all, and a run that was asked to stop
        return (stop.code if isinstance(stop.code, int) else 0), None


def _print_metrics(metrics: dict[str, float], checkpoint: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", box=None, pad_edge=False)
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("an untrained model: no checkpoint was given" if checkpoint is None else f"checkpoint: {checkpoint}", markup=False)
