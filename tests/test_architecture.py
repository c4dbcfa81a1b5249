"""The shape of the code, held by reading it: which way imports point, how long files are, what must never be written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lmlab"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OWN_FILES = sorted(p for folder in ("lmlab", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))

# A part imports only from parts above it, so that each can be read, tested and replaced without what is below. Parts in one group do not
# import each other. A new part is given its place here, and in docs/architecture.md.
ORDER = (
    {"errors"},
    {"cache", "config"},
    {"budget", "ranks"},
    {"tokenizer"},
    {"data"},
    {"nn"},
    {"backbones"},
    {"heads", "losses", "decoding"},
    {"optim"},
    {"run"},
    {"checkpoint"},
    {"objectives"},
    {"rulers"},
    {"callbacks"},
    {"strategies"},
    {"quiet", "loading", "job"},
    {"session", "trainer_settings"},
    {"training"},
    {"planning"},
    {"cli"},
)
PLACE = {part: place for place, parts in enumerate(ORDER) for part in parts}
ENTRY = {"__init__", "__main__"}  # the package's face: it offers names from anywhere, when they are asked for

MAX_LINES = 400
SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}
OPTIONAL = {
    "wandb",
    "deepspeed",
    "transformers",
    "datasets",
    "pyarrow",
    "lion_pytorch",
    "rjieba",
    "safetensors",
}  # seconds to import, or an extra
HEAVY = {"torch", "lightning", "torchmetrics", "numpy", "jsonargparse"}
INSTANT = (
    "__init__.py",
    "__main__.py",
    "errors.py",
    "cli/__init__.py",
    "cli/dispatch.py",
    "cli/completion.py",
    "cli/guide.py",
)  # what `lmlab --help` imports


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """Dotted names that imports bring in, with their lines; `from lmlab import nn` is `lmlab.nn`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "lmlab":
            yield from ((node.lineno, f"lmlab.{name.name}") for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: all but the bodies of functions and of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from at_import(child)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def wrong_arrows(part: str, tree: ast.Module) -> list[str]:
    found = []
    for line, name in imported(ast.walk(tree)):
        other = name.split(".")[1] if name.startswith("lmlab.") else part
        if other in PLACE and other != part and PLACE[other] >= PLACE[part]:
            found.append(f"line {line}: {part} imports {name}")
    return found


def unsafe_loads(tree: ast.Module) -> list[int]:
    """Lines that call `torch.load` without a literal `weights_only=True`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    return [call.lineno for call in calls if not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)]


def objectives() -> Iterator[str]:
    """Stems of the modules that define an objective, directly or through another."""
    known = {"Objective"}
    trees = {path.stem: parse(path) for path in (PACKAGE / "objectives").glob("*.py") if path.stem != "base"}
    for _ in trees:  # as many rounds as the longest chain could have
        for stem, tree in trees.items():
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
            derived = [node for node in classes if {ast.unparse(base).split("[")[0] for base in node.bases} & known]
            known |= {node.name for node in derived}
            if any("@abstractmethod" not in ast.unparse(node) for node in derived):
                yield stem


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in PLACE or part in ENTRY, f"give '{part}' its place in ORDER"
    if part in PLACE:
        assert wrong_arrows(part, parse(path)) == []
    relative = [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom) and node.level]
    assert relative == [], "imports are absolute"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    found = {name.split(".")[0] for _, name in imported(at_import(parse(path)))}
    assert found & OPTIONAL == set()
    if str(path.relative_to(PACKAGE)) in INSTANT:
        assert found & HEAVY == set(), "`lmlab --help` imports this"
    if part_of(path) == "run":
        assert found & {"torch", "lightning"} == set(), "`lmlab runs` imports this"


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= MAX_LINES
    assert SAY_NOTHING.isdisjoint(part.removesuffix(".py").removeprefix("test_") for part in path.relative_to(ROOT).parts)


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_checkpoints_are_loaded_as_weights_only(path: Path) -> None:
    assert unsafe_loads(parse(path)) == []


def test_every_objective_has_a_config_and_a_test() -> None:
    stems = set(objectives())
    assert {"clm", "mlm", "span_corruption"} <= stems
    assert {stem for stem in stems if not (ROOT / f"configs/pretrain/{stem}.yaml").is_file()} == set()
    assert {stem for stem in stems if not (ROOT / f"tests/objectives/test_{stem}.py").is_file()} == set()


@pytest.mark.parametrize(
    ("part", "source", "ok"),
    [
        ("data", "from lmlab.objectives.base import Objective", False),
        ("data", "def f():\n    import lmlab.cli.dispatch", False),
        ("nn", "from lmlab import cli", False),
        ("heads", "from lmlab.losses import x", False),
        ("objectives", "from lmlab.data.batch import Feed\nfrom lmlab.objectives.base import Objective", True),
    ],
)
def test_the_rule_on_arrows_sees_each_way_to_import(part: str, source: str, ok: bool) -> None:
    assert (wrong_arrows(part, ast.parse(source)) == []) is ok


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("torch.load(p)", [1]),
        ("torch.load(p, weights_only=False)", [1]),
        ("torch.load(p, weights_only=flag)", [1]),
        ("torch.load(p, weights_only=True)", []),
    ],
)
def test_the_rule_on_loading_sees_each_way_to_load(source: str, lines: list[int]) -> None:
    assert unsafe_loads(ast.parse(source)) == lines


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import wandb", {"wandb"}),
        ("try:\n    import wandb\nexcept ImportError:\n    pass", {"wandb"}),
        ("class A:\n    import wandb", {"wandb"}),
        ("def f():\n    import wandb", set()),
        ("if TYPE_CHECKING:\n    import wandb", set()),
    ],
)
def test_the_rule_on_optional_packages_knows_what_runs_at_import(source: str, names: set[str]) -> None:
    assert {name for _, name in imported(at_import(ast.parse(source)))} == names
