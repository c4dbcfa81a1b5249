"""`environment.json`: what a run ran on and how it was called, as far as another person needs it to repeat the run.

No user name, host name or working folder is recorded, and secrets on the command line are hidden.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.cache import write_atomic
from lmlab.run.record import Git
from lmlab.run.redaction import redact_command

PACKAGES = (
    "lmlab",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "torchmetrics",
    "jsonargparse",
    "numpy",
    "wandb",
    "deepspeed",
    "datasets",
    "pyarrow",
    "safetensors",
    "triton",
)
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTHONHASHSEED",
    "TOKENIZERS_PARALLELISM",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NCCL_P2P_DISABLE",
)
"""Environment variables that change speed or numbers; no others are looked at."""

GIT_SECONDS = 10.0


def describe_environment(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, machine, torch's settings, source state and command line.

    Args:
        argv: The command; None takes this process's.

    Returns:
        Plain values for `environment.json`.
    """
    git = git_state()
    return {
        "command": redact_command(sys.argv if argv is None else argv),
        "python": platform.python_version(),
        "packages": _versions(),
        "git": None if git is None else {"commit": git.commit, "dirty": git.dirty},
        "machine": _machine(),
        "torch": _torch(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def write_environment(path: Path, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Writes `environment.json`.

    Args:
        path: The file.
        argv: The command; None takes this process's.

    Returns:
        What was written.
    """
    content = describe_environment(argv)
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
    return content


def git_state(folder: Path | None = None) -> Git | None:
    """Commit of the repository that holds a folder.

    Args:
        folder: None takes the current one, where a run's own configs lie, and if that is in no repository lmlab's source.

    Returns:
        None outside a repository, before the first commit, or without git.
    """
    folders = [folder] if folder is not None else [Path.cwd(), Path(__file__).parent]
    for place in folders:
        commit = _git(place, "rev-parse", "HEAD")
        if commit:
            changes = _git(place, "status", "--porcelain", "--untracked-files=no")
            return Git(commit=commit, dirty=changes is None or bool(changes))
    return None


def cpu_model() -> str:
    """The processor's name as its maker writes it, empty if the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    except OSError:
        match = None
    if match:
        return match[1].strip()
    if sys.platform == "darwin":
        return _run(["sysctl", "-n", "machdep.cpu.brand_string"], Path("/")) or platform.processor()
    return platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "memory_bytes": _memory_bytes(),
    }


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system has these names
        return None


def _torch() -> dict[str, Any]:
    import torch  # here, not above: listing runs must not wait seconds for it

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    return _run(["git", "--no-optional-locks", *arguments], folder)


def _run(command: list[str], folder: Path) -> str | None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
