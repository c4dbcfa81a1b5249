"""Prints constraints.txt: exact versions of what this environment holds, so that everyone gets the same.

Run by `make pins`. Packages of extras that are not installed here keep the pins they have.
"""

import re
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

FILE = Path(__file__).resolve().parents[1] / "constraints.txt"
OWN = {"lmlab", "pip", "setuptools", "wheel"}
OLDEST_PYTHON = 10  # of the minor versions of Python 3 that lmlab supports

HEADER = """\
# Exact versions of everything the project installs: pip install -c constraints.txt -e .[dev]. Written by `make pins`.
# torch is pinned without the name of its build (+cpu, +cu130), so that each machine takes the one its index offers.
# lightning 2.6.2 and 2.6.3 were malicious releases; keep this pin.
# A pin with a marker needs a newer Python than the oldest lmlab supports; there pip takes the newest that fits."""


def pins() -> list[str]:
    """One line per package, sorted by name."""
    kept = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    lines = {_plain(line.partition("==")[0]): line for line in kept if "==" in line and not line.startswith("#")}
    for found in distributions():
        name = _plain(found.metadata["Name"])
        if name not in OWN:
            lines[name] = f"{name}=={Version(found.version).public}{_marker(found.metadata['Requires-Python'] or '')}"
    return [lines[name] for name in sorted(lines)]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _marker(needed: str) -> str:
    oldest = next(minor for minor in range(OLDEST_PYTHON, 20) if SpecifierSet(needed).contains(f"3.{minor}.99"))
    return "" if oldest == OLDEST_PYTHON else f' ; python_version >= "3.{oldest}"'


if __name__ == "__main__":
    print("\n".join([HEADER, *pins()]))
