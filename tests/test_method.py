"""docs/method.md names the code that does each statement of the method and the tests that show it; here all of it is looked up."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ["The chain", "P", "D", "Layers", "The frame rate", "Masks", "What it is used for", "Stages", "Losses", "Evaluation"]  # fmt: skip


@dataclass
class Statement:
    number: int
    text: str
    code: list[tuple[str, str, str]] = field(default_factory=list)
    """(file, symbol, a line of it)"""
    tests: list[tuple[str, str]] = field(default_factory=list)


def statements(document: str) -> list[Statement]:
    """The numbered statements. A line below one that is neither of its text, code nor tests is refused."""
    found: list[Statement] = []
    body = document[document.index(f"## {SECTIONS[0]}\n") : document.index("## What the paper leaves open")]
    for line in body.splitlines():
        if begins := re.fullmatch(r"(\d+)\. (.*)", line):
            found.append(Statement(int(begins[1]), begins[2]))
        elif code := re.fullmatch(r" +- code: `([^`]+)` `([^`]+)` `([^`]+)`", line):
            found[-1].code.append((code[1], code[2], code[3]))
        elif test := re.fullmatch(r" +- test: `([^`]+)::([^`]+)`", line):
            found[-1].tests.append((test[1], test[2]))
        elif line.startswith("   ") and not line.lstrip().startswith("-"):
            found[-1].text += " " + line.strip()
        else:
            assert not line or line.startswith("## "), f"neither a statement, nor code, nor a test: {line}"
    return found


@cache
def defined(file: str) -> dict[str, str]:
    """Each function, class, method and module-level name of a file -> its source, on one line."""
    source = (ROOT / file).read_text(encoding="utf-8")
    symbols: dict[str, str] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                symbols[prefix + name] = flat(ast.get_source_segment(source, node) or "")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(source).body, "")
    return symbols


def flat(code: str) -> str:
    """Without the line breaks, and the commas before a closing bracket, that a formatter moves."""
    code = re.sub(r"\s+", " ", code)
    return re.sub(r",? ?([)\]}])", r"\1", re.sub(r"([(\[{]) ", r"\1", code))


def faults(statement: Statement) -> list[str]:
    told = []
    if not re.search(r"\[[^\]]+\]", statement.text):
        told.append("has no source")
    if not statement.code or not statement.tests:
        told.append("has no code or no test")
    for file, symbol, line in statement.code:
        if not (ROOT / file).is_file():
            told.append(f"there is no {file}")
        elif symbol not in defined(file):
            told.append(f"{file} defines no {symbol}")
        elif flat(line) not in defined(file)[symbol]:
            told.append(f"{symbol} has no line `{line}`")
    for file, name in statement.tests:
        if not (ROOT / file).is_file():
            told.append(f"there is no {file}")
        elif name not in defined(file):
            told.append(f"{file} has no {name}")
    return told


DOCUMENT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("statement", statements(DOCUMENT), ids=lambda statement: str(statement.number))
def test_a_statement_has_its_source_its_line_of_code_and_a_test(statement: Statement) -> None:
    assert not faults(statement)


def test_all_of_the_method_is_listed() -> None:
    assert re.findall(r"^## (.*)$", DOCUMENT, re.MULTILINE) == [*SECTIONS, "What the paper leaves open"]
    numbers = [statement.number for statement in statements(DOCUMENT)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 33


@pytest.mark.parametrize(
    ("code", "test", "fault"),
    [
        (("mavcli/engine/none.py", "x", "y"), None, "there is no mavcli/engine/none.py"),
        (("mavcli/models/prior.py", "Prior.backward", "y"), None, "defines no Prior.backward"),
        (("mavcli/models/prior.py", "Prior.scale", "return x"), None, "Prior.scale has no line `return x`"),
        (None, ("tests/models/test_prior.py", "test_nothing"), "has no test_nothing"),
    ],
)
def test_what_is_not_there_is_found(code, test, fault) -> None:
    right = statements(DOCUMENT)[4]
    wrong = Statement(5, right.text, [code] if code else right.code, [test] if test else right.tests)
    assert len(faults(wrong)) == 1 and fault in faults(wrong)[0]
