"""`mav` under a mutator (`mutator.py`): every case ends in a known exit code and in one error, without a traceback or a bug,
within ten seconds of processor time. A sample always; all of it: `pytest -m slow tests/test_mutator.py`.
"""

from __future__ import annotations

import os

import mutator
import pytest

SAMPLE = {"values": (4, 16), "media": (0, 4), "weights": (8, 13)}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


@pytest.mark.slow
@pytest.mark.parametrize("part", mutator.PARTS)
def test_every_mutated_value_and_file_ends_in_a_line(part, tmp_path):
    judge = mutator.Judge(tmp_path, part=part)
    found = [
        f"{part} {number}: mav {case.words}\n{told}"
        for number, case, told in judge.faults(0, mutator.COUNTS[part])
    ]
    assert not found, "\n".join(found)
    assert sum(judge.codes.values()) == mutator.COUNTS[part] and len(judge.commands) > 3, "it did look"


def test_a_sample_of_mutated_values_and_files_ends_in_a_line(tmp_path):
    judge = mutator.Judge(tmp_path, part="values")
    found = []
    for judge.part, (begin, end) in SAMPLE.items():
        found += [
            f"{judge.part} {at}: mav {case.words}\n{told}" for at, case, told in judge.faults(begin, end)
        ]
    assert not found, "\n".join(found)
    assert {0, 2, 3, 4} <= set(judge.codes)
