"""The floors of the package: imports go down only, and only the command line knows a terminal."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mavcli"
FLOORS = {
    "errors": 0,
    "report": 0,
    "files": 0,
    "stopping": 0,
    "specs": 1,
    "models": 2,
    "diffusion": 2,
    "media": 2,
    "recipe": 2,
    "weights": 3,
    "data": 3,
    "engine": 4,
    "training": 5,
    "evaluation": 5,
    "cli": 6,
}
# None of these may import another.
APART = {"models", "diffusion", "media", "recipe"}
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE.parent)) for file in FILES]


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the floor"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def broken_floors(source: str, part: str) -> list[str]:
    """The lines that import from the own floor's neighbours or from above."""
    faults = []
    for line, name in imports(ast.parse(source)):
        pieces = name.split(".")
        if pieces[0] != "mavcli" or len(pieces) < 2 or pieces[1] == part or pieces[1] not in FLOORS:
            continue
        other = pieces[1]
        if FLOORS[other] > FLOORS[part] or {part, other} <= APART:
            faults.append(
                f"line {line}: {part} (floor {FLOORS[part]}) imports {other} (floor {FLOORS[other]})"
            )
    return faults


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_imports_go_down_only(file: Path) -> None:
    part = part_of(file)
    if part in ("__init__", "__main__"):
        return
    assert part in FLOORS, f"{file} is on no floor"
    assert broken_floors(file.read_text(), part) == []


def test_an_import_from_above_or_beside_is_found() -> None:
    assert broken_floors("from mavcli.engine.cascade import Cascade", "models") == [
        "line 1: models (floor 2) imports engine (floor 4)"
    ]
    assert broken_floors("def f():\n    import mavcli.media.video", "diffusion") == [
        "line 2: diffusion (floor 2) imports media (floor 2)"
    ]
    assert broken_floors("from mavcli import cli", "weights") == [
        "line 1: weights (floor 3) imports cli (floor 6)"
    ]
    assert broken_floors("from mavcli.specs import Spec\nimport torch", "models") == []


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_only_the_command_line_prints_exits_or_knows_a_terminal(file: Path) -> None:
    part = part_of(file)
    if part in ("cli", "__main__"):
        return
    tree = ast.parse(file.read_text())
    foreign = [
        (line, name) for line, name in imports(tree) if name.split(".")[0] in ("typer", "rich", "click")
    ]
    assert foreign == []
    calls = {(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    told = {"print", "input", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    assert sorted(call for call in calls if call[1] in told) == []


@pytest.mark.parametrize(
    "file", [f for f in FILES if part_of(f) == "cli"], ids=[n for n in NAMES if "/cli/" in n]
)
def test_commands_import_heavy_libraries_inside_their_bodies(file: Path) -> None:
    heavy = {
        "torch",
        "torchvision",
        "numpy",
        "av",
        "PIL",
        "open_clip",
        "safetensors",
        "huggingface_hub",
        "scipy",
    }
    faults = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            faults += [(line, name) for line, name in imports(node) if name.split(".")[0] in heavy]
    assert faults == []
