"""`lmlab COMMAND`: one table of commands, help that teaches, errors in a few lines."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NamedTuple

from lmlab.errors import ConfigError, LabError, nearest


class Command(NamedTuple):
    """One command.

    Args:
        group: Heading in the help.
        summary: One line.
        target: `module:function`; the function takes the arguments after the command and returns an exit code.
    """

    group: str
    summary: str
    target: str


TRAIN, LOOK, USE = "Train and measure", "Look", "Use a trained model"
COMMANDS = {
    "fit": Command(TRAIN, "train an objective: lmlab fit -c CONFIG [-c OVERLAY] [--section.key VALUE]", "lmlab.cli.training:fit_main"),
    "validate": Command(TRAIN, "measure a run on its validation text: lmlab validate RUN", "lmlab.cli.training:validate_main"),
    "test": Command(TRAIN, "measure a run on its test text: lmlab test RUN", "lmlab.cli.training:test_main"),
    "predict": Command(TRAIN, "write down what a run predicts for its test text: lmlab predict RUN", "lmlab.cli.training:predict_main"),
    "plan": Command(TRAIN, "predict memory, time and strategy of a run, before it is run: lmlab plan -c CONFIG", "lmlab.cli.plan:main"),
    "strategies": Command(TRAIN, "what can be trained under DDP, FSDP and ZeRO, and what cannot", "lmlab.cli.strategies:main"),
    "techniques": Command(TRAIN, "the table of all techniques, trained with several seeds", "lmlab.cli.techniques:main"),
    "demo": Command(TRAIN, "a causal and a masked model learn from Jane Austen in a few minutes", "lmlab.cli.demo:main"),
    "generate": Command(USE, "continue a text: lmlab generate RUN --prompt TEXT", "lmlab.cli.generate:generate_main"),
    "fill": Command(USE, "fill gaps: lmlab fill RUN --text 'She was [MASK] to see him.'", "lmlab.cli.generate:fill_main"),
    "embed": Command(USE, "vectors of texts, and how near they are: lmlab embed RUN --text A --text B", "lmlab.cli.embed:main"),
    "retrieve": Command(
        USE, "whether vectors tell which halves of a passage belong together: lmlab retrieve RUN", "lmlab.cli.retrieve:main"
    ),
    "distill-corpus": Command(
        USE, "let a causal model write a text for students to learn from: lmlab distill-corpus RUN", "lmlab.cli.distill_corpus:main"
    ),
    "checkpoint": Command(USE, "make one file of a sharded checkpoint: lmlab checkpoint consolidate PATH", "lmlab.cli.checkpoint:main"),
    "runs": Command(LOOK, "a table of runs", "lmlab.cli.runs:main"),
    "report": Command(LOOK, "build the HTML page of a run anew: lmlab report RUN", "lmlab.cli.report:main"),
    "tokenizer": Command(LOOK, "train a tokenizer, or see how one splits a text", "lmlab.cli.tokenizer:main"),
    "doctor": Command(LOOK, "versions, devices, what is missing and how to get it", "lmlab.cli.doctor:main"),
    "completion": Command(LOOK, "shell completion: lmlab completion bash|zsh|fish", "lmlab.cli.completion:main"),
}
"""All commands; completion is made from this table as well."""

EXAMPLES = (
    ("lmlab demo", "see everything once"),
    ("lmlab fit -c configs/pretrain/mlm.yaml --model.mask_prob 0.15", "train, with one setting changed"),
    ("lmlab plan -c configs/pretrain/mlm.yaml -c configs/backbones/base.yaml", "see what it will take"),
    ("lmlab fit -c configs/pretrain/mlm.yaml --print_config", "see every setting and its value"),
    ("lmlab generate clm --prompt 'It was a truth'", "let the newest finished run named clm write"),
)
CONFIG_EXIT, RUN_EXIT, INTERRUPT_EXIT = 2, 1, 130


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments after `lmlab`; None takes the process's own.

    Returns:
        Exit code: 0, 1 for a run that failed, 2 for settings or files that cannot be used, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):  # one rank of several
        from lmlab.cli.ranks import as_rank

        return as_rank(lambda: _call(arguments[0] if arguments else "help", arguments[1:]), exit_code)
    try:
        return _call(arguments[0] if arguments else "help", arguments[1:])
    except LabError as error:
        if os.environ.get("LMLAB_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPT_EXIT
    except BrokenPipeError:  # `lmlab --help | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def exit_code(error: Exception) -> int:
    """The exit code of a failure.

    Args:
        error: What was raised.
    """
    return CONFIG_EXIT if isinstance(error, LabError) and type(error) is not LabError else RUN_EXIT


def help_text() -> str:
    """What `lmlab --help` prints."""
    lines = ["lmlab: a wind tunnel for language-model training techniques", "", "usage: lmlab COMMAND [OPTIONS]", ""]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines.append(f"{group}:")
        lines += [f"  {name:<14} {command.summary}" for name, command in COMMANDS.items() if command.group == group]
        lines.append("")
    width = max(len(call) for call, _ in EXAMPLES)
    lines += ["Examples:", *(f"  {call:<{width}}  # {what}" for call, what in EXAMPLES)]
    lines += ["", "RUN is a run's folder, a .ckpt file, or a name, which stands for its newest finished run."]
    lines += ["`lmlab COMMAND --help` says more. LMLAB_RUNS: where runs are kept (./runs). LMLAB_DEBUG=1: show tracebacks."]
    return "\n".join(lines)


def _call(name: str, arguments: list[str]) -> int:
    if name in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if name in ("-V", "--version"):
        from lmlab import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        what = f"'{name}' is not a command" if not name.startswith("-") else f"'{name}' comes before the command"
        raise ConfigError(
            what, where="lmlab COMMAND", remedy=nearest(name, COMMANDS) if not name.startswith("-") else "lmlab fit -c CONFIG ..."
        )
    module, _, function = COMMANDS[name].target.partition(":")
    return getattr(importlib.import_module(module), function)(arguments)
