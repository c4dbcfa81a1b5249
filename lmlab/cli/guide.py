"""What `lmlab fit --help` prints: the few things one needs first. All 150 settings come with `--help all`."""

from __future__ import annotations

from typing import NamedTuple

GROUPS = {
    "model": (
        "what is learnt, and the network",
        ("model.backbone.hidden_size", "model.backbone.num_layers", "model.length", "model.optimizer.lr"),
    ),
    "data": ("what it is learnt from", ("data.corpus", "data.global_batch_size", "data.micro_batch_size", "data.num_workers")),
    "tokenizer": ("trained from the corpus, once, or loaded", ("tokenizer.kind", "tokenizer.vocab_size", "tokenizer.path")),
    "budget": ("when the run ends: exactly one of", ("budget.tokens", "budget.steps", "budget.flops", "budget.seconds")),
    "run": ("where it is written, and how it goes on", ("run.name", "run.question", "run.resume", "run.wandb")),
    "trainer": ("Lightning's Trainer", ("trainer.precision", "trainer.devices", "trainer.strategy", "trainer.callbacks+")),
    "launch": ("how several ranks are looked after", ("launch.max_restarts", "launch.stop_seconds")),
}
"""Sections of a config: what each is for, and the settings asked for most."""

OWN_OPTIONS = {
    "-c FILE": "a config; several are merged from left to right: one base, then overlays",
    "--print_config": "print every setting and its value, and stop",
    "--allow PKG": "let settings name classes of a package of yours (also LMLAB_ALLOW=PKG,PKG)",
    "--help all": "every setting there is",
}
FIT_OPTIONS = {
    "--name NAME": "short for --run.name: runs of one name belong together",
    "--resume auto|must|never|RUN": "short for --run.resume: go on with an unfinished run",
}
RUN_OPTIONS = {"--checkpoint best|last|step=N": "which checkpoint (default: best, else last)"}


class Page(NamedTuple):
    """Usage, introduction and examples of one command."""

    usage: tuple[str, ...]
    about: str
    examples: tuple[tuple[str, str], ...]


COMMANDS = {
    "fit": Page(
        ("lmlab fit -c CONFIG [-c OVERLAY ...] [--section.key VALUE ...]",),
        "Train an objective. A config in configs/pretrain says everything; overlays and options change it.",
        (
            ("lmlab fit -c configs/pretrain/mlm.yaml", "train"),
            ("lmlab fit -c configs/pretrain/mlm.yaml -c configs/debug/smoke.yaml", "two steps, to see that it works"),
            ("lmlab fit -c configs/pretrain/mlm.yaml --model.mask_prob 0.15 --name mlm-15", "one setting changed"),
            ("lmlab fit -c configs/pretrain/clm.yaml --data.corpus 'texts/*.txt' --budget.tokens 10M", "your own text"),
            ("lmlab fit -c configs/pretrain/clm.yaml -c configs/speed/compile.yaml --resume auto", "go on after an interruption"),
        ),
    ),
    "validate": Page(
        ("lmlab validate RUN [--checkpoint best|last|step=N] [--section.key VALUE ...]", "lmlab validate -c CONFIG --ckpt_path FILE"),
        "Measure a run on the validation split of its text. RUN is a run's folder, a .ckpt file, or a name.",
        (
            ("lmlab validate mlm", "the newest finished run named mlm, its best checkpoint"),
            ("lmlab validate mlm --checkpoint last --data.eval_examples null", "the last one, on all of the split"),
            ("lmlab validate mlm --data.corpus other.txt", "on another text"),
        ),
    ),
    "test": Page(
        ("lmlab test RUN [--checkpoint best|last|step=N] [--section.key VALUE ...]", "lmlab test -c CONFIG --ckpt_path FILE"),
        "Measure a run on the test split of its text. RUN is a run's folder, a .ckpt file, or a name.",
        (("lmlab test mlm", "the newest finished run named mlm, its best checkpoint"),),
    ),
    "predict": Page(
        ("lmlab predict RUN [--checkpoint best|last|step=N] [--section.key VALUE ...]", "lmlab predict -c CONFIG --ckpt_path FILE"),
        "Write down what a run was shown, asked for, and answers on its test split: predictions.jsonl in the run's folder.",
        (("lmlab predict mlm", "one line of JSON per example: input, target, predicted"),),
    ),
}


def guide(command: str) -> str:
    """The short help.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
    """
    page = COMMANDS[command]
    lines = [f"{'usage:' if i == 0 else '      '} {usage}" for i, usage in enumerate(page.usage)]
    lines += ["", page.about, "", "Examples:"]
    for call, what in page.examples:
        lines += [f"  # {what}", f"  {call}"]
    lines += ["", "Sections of a config, and settings often changed:"]
    for name, (purpose, keys) in GROUPS.items():
        lines += [f"  {name:<10} {purpose}", f"  {'':<10}   {'  '.join(f'--{key}' for key in keys)}"]
    options = {**(FIT_OPTIONS if command == "fit" else RUN_OPTIONS), **OWN_OPTIONS}
    width = max(map(len, options))
    lines += ["", "Options:", *(f"  {option:<{width}}  {what}" for option, what in options.items())]
    lines += [
        "",
        "A class's own settings: --model.help lmlab.objectives.mlm.MLM. Settings of a wrong name are refused with the nearest right one.",
    ]
    return "\n".join(lines)


def options_of(command: str) -> tuple[str, ...]:
    """The options worth completing.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
    """
    options = {**(FIT_OPTIONS if command == "fit" else RUN_OPTIONS), **OWN_OPTIONS}
    names = dict.fromkeys(option.split()[0] for option in options)
    return (*names, *(f"--{key}" for _, keys in GROUPS.values() for key in keys))
