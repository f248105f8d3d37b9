"""`mav` under a mutator: random recipe values, mutated pictures and tables, mutated weight files. Each ends in a known exit code
and in one error, never in a traceback or a bug, within ten seconds of processor time. All of it: `pytest -m slow tests/test_mutator.py`.
"""

from __future__ import annotations

import io
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from mavcli.cli.app import run
from mavcli.recipe.load import _all_keys
from mavcli.recipe.yaml_tree import dotted

CODES = {0, 2, 3, 4, 5, 6, 7, 8, 130, 143}
VALUES = ("nan", ".nan", "inf", "1e-300", "1e300", "1e999", "-1", "0", "1", "2", "7", "0.5", "1001", "1000000000", "9" * 200, "null",
          "true", "[]", "[1]", "[1,2,3]", "[-1]", "{}", "{a: 1}", "x", "''", "\0", "*a", "!!python/none", "- 1", ":", "é")  # fmt: skip


@pytest.fixture
def mav(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))

    def call(*words: object) -> int:
        begun = time.process_time()
        code = run([*map(str, words)])
        told = capsys.readouterr().err
        assert code in CODES and "a bug in mav" not in told and "Traceback" not in told, (words, code, told)
        assert told.count("error: ") == (code not in (0, 8)), (words, told)
        assert time.process_time() - begun < 10, words
        return code

    return call


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.randint(1, 40)]
            case 2:
                changed[at:at] = changed[max(0, at - 20) : at]
            case _:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(changed)


COUNTS = [pytest.param(0.01, id="sample"), pytest.param(1.0, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("share", COUNTS)
def test_values_of_a_recipe(share, mav):
    rng, keys = random.Random(1), [dotted(key) for key in _all_keys()]
    codes = [
        mav("recipe", "show", "pocket", "--only", "name", "--set", f"{rng.choice(keys)}={rng.choice(VALUES)}")
        for _ in range(int(5000 * share))
    ]
    assert {0, 2} <= set(codes)


@pytest.mark.parametrize("share", COUNTS)
def test_pictures_and_tables(share, mav, tmp_path):
    rng, originals = random.Random(2), []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).save(stream, kind)
        originals.append((f"a.{kind.lower()}", stream.getvalue()))
    originals.append(("t.csv", b'file,caption\na.png,"a dog, running"\nb.png,a cat\n'))
    originals.append(("t.jsonl", json.dumps({"file": "a.png", "caption": "a dog"}).encode() + b"\n"))
    for number in range(int(2000 * share)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.png").write_bytes(originals[0][1])
        name, data = rng.choice(originals)
        (folder / f"m{name}").write_bytes(mutated(data, rng))
        mav("data", "check", folder, "--kind", "pairs" if name.startswith("t.") else "image", "-q")


@pytest.mark.parametrize("share", COUNTS)
def test_weight_files(share, mav, tmp_path):
    rng = random.Random(3)
    whole = Path(__file__).parents[1] / "weights" / "pocket" / "sr_l.safetensors"
    header = whole.read_bytes()[:60_000] if whole.is_file() else b""
    plain = save({"a": np.zeros((4, 4), np.float32)}, {"format": "pt"})
    for number in range(int(1000 * share)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(mutated(rng.choice([plain, header or plain]), rng))
        assert mav("weights", "show", path) != 1
