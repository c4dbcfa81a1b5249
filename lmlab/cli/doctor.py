"""`lmlab doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmlab.cache import default_cache_dir
from lmlab.run.directory import runs_root
from lmlab.run.environment import describe_environment

State = Literal["ok", "note", "wrong"]

EXTRAS = {
    "hf": ("transformers", "datasets"),
    "parquet": ("pyarrow",),
    "lion": ("lion_pytorch",),
    "zh": ("rjieba",),
    "deepspeed": ("deepspeed",),
    "notebooks": ("jupyterlab", "ipykernel"),
}
"""Extras of the package, and what they bring."""

OLDEST_PYTHON = (3, 10)
LOW_DISK_GIB = 2.0  # a small run with its checkpoints, and a tokenised corpus of a few hundred MB
GIB = 2**30
MARKS = {"ok": "ok  ", "note": "note", "wrong": "BAD "}


class Finding(NamedTuple):
    """One thing that was looked at.

    Args:
        name: What.
        state: `note` is worth knowing, `wrong` is to be mended.
        value: What was found.
        remedy: What to do about it, empty if nothing.
    """

    name: str
    state: State
    value: str
    remedy: str = ""


def main(argv: list[str]) -> int:
    """Prints the findings.

    Args:
        argv: Options after `lmlab doctor`.

    Returns:
        0, or 1 if something must be mended before lmlab can work.
    """
    parser = argparse.ArgumentParser(prog="lmlab doctor", description="What this machine has, what is missing.", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print plain data instead of lines")
    options = parser.parse_args(argv)
    findings = examine()
    wrong = any(finding.state == "wrong" for finding in findings)
    if options.json:
        print(json.dumps({"healthy": not wrong, "findings": [finding._asdict() for finding in findings]}, indent=2, ensure_ascii=False))
    else:
        print(_lines(findings))
    return int(wrong)


def examine() -> list[Finding]:
    """Looks at versions, devices, compiler, strategies, extras, W&B, disk and dangerous settings; changes nothing."""
    environment = describe_environment(["lmlab", "doctor"])
    return [
        _python(),
        *_packages(environment),
        *_devices(environment),
        _compiler(),
        _strategies(),
        *_extras(),
        _wandb(),
        *_folders(),
        _weights_only(),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "wrong", version, "lmlab needs 3.10 or newer")
    return Finding("python", "ok", version)


def _packages(environment: dict[str, Any]) -> list[Finding]:
    found = environment["packages"]
    missing = [name for name in ("torch", "lightning", "tokenizers", "torchmetrics", "jsonargparse") if name not in found]
    versions = ", ".join(f"{name} {found[name]}" for name in found if name != "lmlab")
    if missing:
        return [Finding("packages", "wrong", f"missing: {', '.join(missing)}", "make setup")]
    return [Finding("packages", "ok", versions)]


def _devices(environment: dict[str, Any]) -> list[Finding]:
    machine, torch = environment["machine"], environment["torch"]
    memory = f", {machine['memory_bytes'] / GIB:.0f} GiB" if machine["memory_bytes"] else ""
    findings = [Finding("cpu", "ok", f"{machine['cpu'] or machine['architecture']}, {machine['usable_cores']} cores{memory}")]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_bytes'] / GIB:.0f} GiB)" for gpu in torch["gpus"])
    findings.append(
        Finding("gpu", "ok", gpus) if gpus else Finding("gpu", "note", "none: everything runs on the CPU, small models in minutes")
    )
    threads, cores = torch["threads"], machine["usable_cores"] or 1
    if threads > cores:
        findings.append(Finding("threads", "note", f"{threads} on {cores} cores", f"export OMP_NUM_THREADS={cores}"))
    else:
        findings.append(Finding("threads", "ok", f"{threads}"))
    return findings


def _compiler() -> Finding:
    found = next((name for name in (os.environ.get("CXX"), "g++", "clang++") if name and shutil.which(name)), None)
    if found is None:
        return Finding(
            "compile", "note", "no C++ compiler", "install g++ to use configs/speed/compile.yaml on a CPU; nothing else needs it"
        )
    return Finding("compile", "ok", f"torch.compile can use {found}")


def _strategies() -> Finding:
    import torch.distributed

    if not torch.distributed.is_available():
        return Finding("strategies", "note", "single device only", "this build of torch has no torch.distributed")
    names = ["single", "ddp", "fsdp", *(["zero (deepspeed)"] if importlib.util.find_spec("deepspeed") else [])]
    backends = [name for name in ("gloo", "nccl") if getattr(torch.distributed, f"is_{name}_available")()]
    return Finding("strategies", "ok", f"{', '.join(names)} over {', '.join(backends)}")


def _extras() -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            findings.append(Finding(f"extra {extra}", "note", f"not installed ({', '.join(missing)})", f"pip install 'lmlab[{extra}]'"))
        else:
            findings.append(Finding(f"extra {extra}", "ok", ", ".join(modules)))
    return findings


def _wandb() -> Finding:
    """Looks for a key where W&B looks for one, without reading it out or starting W&B."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled"):
        return Finding("wandb", "note", f"{mode}, because WANDB_MODE says so")
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    if os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")):
        return Finding("wandb", "ok", "a key is configured; runs with run.wandb: auto go online")
    return Finding("wandb", "note", "no key: runs with run.wandb: auto are kept offline", "wandb login")


def _folders() -> list[Finding]:
    findings = []
    for name, folder, variable in (("cache", default_cache_dir(), "LMLAB_CACHE"), ("runs", runs_root(None), "LMLAB_RUNS")):
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free / GIB
        value = f"{folder}, {free:.1f} GiB free"
        if not os.access(there, os.W_OK):
            findings.append(Finding(name, "wrong", f"{folder} cannot be written", f"export {variable}=/another/folder"))
        elif free < LOW_DISK_GIB:
            findings.append(Finding(name, "note", value, f"free some space, or export {variable}=/another/folder"))
        else:
            findings.append(Finding(name, "ok", value))
    return findings


def _weights_only() -> Finding:
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if os.environ.get(name, "").lower() in ("1", "y", "yes", "true"):
        return Finding("checkpoints", "wrong", f"{name} is set: a checkpoint from a stranger could run any code", f"unset {name}")
    return Finding("checkpoints", "ok", "loaded as weights only")


def _lines(findings: list[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]}  {finding.name:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"{'':6}{'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)
