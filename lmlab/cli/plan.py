"""`lmlab plan`: what a run will take, before it is run."""

from __future__ import annotations

import argparse
from typing import Any

from lmlab.errors import BudgetError, ConfigError

EPILOG = """\
Everything else is as for `lmlab fit`: -c CONFIG, overlays, --section.key VALUE. Nothing is trained, downloaded or allocated.

examples:
  # does it fit on this machine?
  lmlab plan -c configs/pretrain/mlm.yaml -c configs/backbones/base.yaml
  # 64 H100 in 8 machines, if they reach 40 % of their peak
  lmlab plan -c configs/pretrain/clm.yaml -c configs/backbones/70b.yaml --devices 64 --nodes 8 --device h100 --model.length 4096
  # what half precision and recomputation would change
  lmlab plan -c configs/pretrain/clm.yaml -c configs/backbones/7b.yaml --device a100-80 --trainer.precision bf16-mixed \\
    --model.backbone.checkpointing blocks

Weights, gradients and optimizer state are exact. Activations are those a CPU keeps, checked against real passes; on GPUs neither they nor
what strategies gather were measured. Time follows from the utilisation you state. docs/scaling.md says more.
"""
GPU_UTILISATION = 0.4
"""Assumed where nothing is stated: what well-tuned training of large models reaches (Chowdhery et al. 2022, table 3: 0.46 for PaLM)."""


def main(argv: list[str]) -> int:
    """Prints a prediction.

    Args:
        argv: What follows `lmlab plan`.

    Returns:
        The exit code.

    Raises:
        ConfigError: If a setting is impossible, or the objective cannot be planned.
    """
    parser = argparse.ArgumentParser(
        prog="lmlab plan",
        usage="lmlab plan -c CONFIG [-c OVERLAY ...] [--section.key VALUE ...] [options]",
        description="Predict memory under each strategy, time and cost of a run, and say which strategy to take.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, metavar="N", help="devices in all, one rank on each (default: the trainer's)")
    parser.add_argument("--nodes", type=int, metavar="M", help="machines they are in (default: the trainer's)")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="a100-40, a100-80, h100, h200, l4, ...; cpu is this machine (default)"
    )
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help="ask about one: single, ddp, fsdp, hsdp, fsdp_tp, zero1, zero2, zero3, zero3_offload (default: the trainer's)",
    )
    parser.add_argument(
        "--utilisation", type=float, metavar="SHARE", help="of the peak that is reached (default: 0.4 on GPUs, unknown on cpu)"
    )
    parser.add_argument("--flops", metavar="PEAK", help="FLOP/s of a device at best, such as 989T; for devices without one, or another one")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of a device, if not what its data sheet says")
    parser.add_argument("--json", action="store_true", help="print plain data: bytes, FLOPs, seconds")
    options, rest = parser.parse_known_args(argv)
    if not any(token.partition("=")[0] in ("-c", "--config", "--model", "--model.class_path") for token in rest):
        raise ConfigError("there is no config to plan", where="lmlab plan", remedy="lmlab plan -c configs/pretrain/clm.yaml")
    from lmlab.cli.allowlist import admit
    from lmlab.cli.overlays import check_base

    admitted = admit(["fit", *rest])
    check_base(admitted.configs, admitted.arguments)
    from lmlab.cli.planning import Planned, read_settings
    from lmlab.quiet import quiet

    quiet()
    try:
        settings: Planned = read_settings(admitted)
    except SystemExit as stop:  # --print_config
        return stop.code if isinstance(stop.code, int) else 0
    return _report(options, settings)


def _report(options: argparse.Namespace, settings: Any) -> int:
    import dataclasses
    import json

    from lmlab.cli.planning import UNCOUNTED
    from lmlab.planning.advice import advise
    from lmlab.planning.page import page, plain
    from lmlab.planning.prediction import predict

    strategy = _strategy(options.strategy) or settings.strategy
    cluster = settings.cluster(_device(options), options.devices, options.nodes, _utilisation(options), strategy)
    prediction = predict(
        settings.objective,
        settings.data,
        settings.budget,
        cluster,
        precision=settings.precision,
        callbacks=settings.callbacks,
        gathered=settings.gathered,
        bucket=settings.bucket,
    )
    said = [note for note in settings.notes if options.devices is None or note != UNCOUNTED]
    prediction = dataclasses.replace(prediction, notes=(*said, *prediction.notes))
    advice = advise(prediction, strategy)
    if options.json:
        print(json.dumps(plain(prediction, advice), indent=2))
    else:
        print(page(prediction, advice))
    return 0


def _device(options: argparse.Namespace) -> Any:
    from lmlab.planning.devices import GIB, MOST_GIB, Device, device_named

    peak = None if options.flops is None else _peak(options.flops)
    memory = None
    if options.memory is not None:
        if not 0 < options.memory < MOST_GIB:
            raise ConfigError(f"--memory {options.memory} is not an amount", where="--memory", remedy="give GiB, such as 80")
        memory = int(options.memory * GIB)
    if peak is not None and memory is not None and options.device.lower() != "cpu":
        return Device(options.device, memory, peak, peak, "as stated")
    device = device_named(options.device)
    if peak is not None:
        device = device._replace(half=peak, single=peak)
    return device if memory is None else device._replace(memory=memory)


def _peak(text: str) -> float:
    from lmlab.budget import parse_amount

    try:
        return float(parse_amount(text, "flops"))
    except BudgetError as error:
        what, remedy = f"--flops {text} is not a number of FLOP/s", "give a device's peak, such as --flops 989T"
        raise ConfigError(what, where="--flops", why=error.why, remedy=remedy) from None


def _utilisation(options: argparse.Namespace) -> float | None:
    if options.utilisation is not None or options.device.lower() == "cpu":
        return options.utilisation
    return GPU_UTILISATION


def _strategy(name: str | None) -> Any:
    from lmlab.errors import nearest
    from lmlab.planning.memory import STRATEGIES

    if name is not None and name not in STRATEGIES:
        raise ConfigError(f"'{name}' is not a strategy that can be planned", where="--strategy", remedy=nearest(name, STRATEGIES))
    return name
