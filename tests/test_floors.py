"""What mav stands on is declared, and from which version on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOR_USERS = {**PROJECT["optional-dependencies"], "": PROJECT["dependencies"]}
FOR_USERS = {extra: lines for extra, lines in FOR_USERS.items() if extra not in ("dev", "bench")}
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open_clip_torch", "triton": "torch"}  # by module


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules() -> set[str]:
    """The first names of all that the package imports, itself and Python's own left out."""
    names = set()
    for file in (ROOT / "mavcli").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - {"mavcli"} - sys.stdlib_module_names


def test_every_library_of_a_user_has_a_floor() -> None:
    lines = [line for lines in FOR_USERS.values() for line in lines]
    assert [line for line in lines if ">=" not in line] == []


def test_every_library_that_is_imported_is_declared() -> None:
    declared = {normal(re.split(r"[<>=!~ ;]", line)[0]) for lines in FOR_USERS.values() for line in lines}
    assert {normal(PACKAGES.get(module, module)) for module in imported_modules()} - declared == set()


def test_torchvision_is_declared_because_open_clip_takes_any() -> None:
    assert [line for line in PROJECT["dependencies"] if line.startswith("torchvision>=")]


def test_the_run_at_the_floors_pins_each_of_them() -> None:
    done = subprocess.run(
        [sys.executable, ".ci/floors.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pinned = dict(line.split("==") for line in done.stdout.splitlines())
    for line in (line for lines in FOR_USERS.values() for line in lines):
        name, floor = re.split(">=", line.split(",")[0])
        assert pinned[name] == floor
