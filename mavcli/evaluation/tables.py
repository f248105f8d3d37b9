"""Published scores beside which ours are printed, and whether the two may be compared (Make-A-Video, tables 1 to 3).

Numbers as read in the paper and, where marked, in other papers' tables; `doubt` says what was not seen in a source itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from mavcli.evaluation.protocol import Preset

Verdict = Literal["yes", "unknown", "no"]


class Published(NamedTuple):
    """One row of a table. `scores` by metric; `why_not` is what sets it apart from the preset, whoever measures."""

    system: str
    scores: dict[str, float]
    setting: str = "zero-shot"
    why_not: str = ""
    doubt: str = ""


PEOPLE = ("quality", "faithfulness", "motion")
"""Scores that people gave: the share, in per cent, of those who preferred Make-A-Video's."""

_ASKED = "people were asked: `mav eval human SAMPLES OTHERS --forced-choice`"
_TRAINED = "trained on the benchmark"
_OTHERS = "from another paper's table"
_ROWS = "which of the two rows is which is unverified"

TABLES: dict[str, tuple[Published, ...]] = {
    "msrvtt": (
        Published(
            "GODIVA",
            {"clipsim": 0.2402},
            "trained on MSR-VTT",
            "not zero-shot",
            "30 samples a caption: unverified",
        ),
        Published("NÜWA", {"fid": 47.68, "clipsim": 0.2439}, "trained on MSR-VTT", "not zero-shot"),
        Published("CogVideo (Chinese)", {"fid": 24.78, "clipsim": 0.2614}, why_not="Chinese captions"),
        Published("CogVideo (English)", {"fid": 23.59, "clipsim": 0.2631}),
        Published("Make-A-Video", {"fid": 13.17, "clipsim": 0.3049}),
    ),
    "msrvtt-2990": (
        Published("Make-A-Video", {"fid": 13.17, "clipsim": 0.3049}, why_not="59,794 captions, 20 a video"),
        Published("ModelScope", {"fid": 11.09, "clipsim": 0.2930}, doubt=_OTHERS),
        Published("Video LDM", {"clipsim": 0.2929}, doubt=_OTHERS),
        Published("Show-1", {"fid": 13.08, "clipsim": 0.3072}, doubt=_OTHERS),
    ),
    "ucf101": (
        Published("CogVideo (Chinese)", {"is": 23.55, "fvd": 751.34}, why_not="480 px, Chinese sentences"),
        Published("CogVideo (English)", {"is": 25.27, "fvd": 701.59}, why_not="480 px"),
        Published("Make-A-Video", {"is": 33.00, "fvd": 367.23}),
        Published("Video LDM", {"is": 33.45, "fvd": 550.61}, doubt=_OTHERS),
        Published("Show-1", {"is": 35.42, "fvd": 394.46}, doubt=_OTHERS),
        Published("PYoCo", {"is": 47.76, "fvd": 355.19}, doubt=_OTHERS),
        Published("TGANv2", {"is": 26.60}, "trained on UCF-101, 128 px", _TRAINED, "unverified"),
        Published("DIGAN", {"is": 32.70, "fvd": 577.0}, "trained on UCF-101", _TRAINED, "unverified"),
        Published(
            "MoCoGAN-HD",
            {"is": 33.95, "fvd": 700.0},
            "trained on UCF-101, 256 px",
            _TRAINED,
            "FVD unverified",
        ),
        Published(
            "CogVideo",
            {"is": 50.46, "fvd": 626.0},
            "trained on UCF-101, 160 px",
            _TRAINED,
            "a reading of the paper has 62.6 for its FVD",
        ),
        Published("VDM", {"is": 57.80}, "trained on UCF-101, 64 px", _TRAINED, "unverified"),
        Published("TATS-base", {"is": 79.28, "fvd": 278.0}, "trained on UCF-101, 128 px", _TRAINED),
        Published("Make-A-Video", {"is": 82.55, "fvd": 81.25}, "finetuned on UCF-101", _TRAINED),
    ),
    "human": (
        Published("against VDM", {"quality": 84.38, "faithfulness": 78.13}, "VDM's 28 prompts"),
        Published("against CogVideo (Chinese)", {"quality": 76.88, "faithfulness": 73.37}, "DrawBench"),
        Published("against CogVideo (English)", {"quality": 74.48, "faithfulness": 68.75}, "DrawBench"),
        Published(
            "against CogVideo (Chinese)",
            {"quality": 73.44, "faithfulness": 75.74},
            "its own 300",
            doubt=_ROWS,
        ),
        Published(
            "against CogVideo (English)",
            {"quality": 77.15, "faithfulness": 71.19},
            "its own 300",
            doubt=_ROWS,
        ),
    ),
}


_FINETUNED = (*(row for row in TABLES["ucf101"] if row.why_not == _TRAINED),)
TABLES["ucf101-finetuned"] = tuple(row._replace(why_not="") for row in _FINETUNED)
TABLES["film"] = (
    Published("against FILM", {"motion": 62.0}, "its own 300, 1 -> 4 fps"),
    Published("against FILM", {"motion": 54.0}, "DrawBench, 1 -> 4 fps"),
)


def compare(preset: Preset, metrics: Sequence[str], departures: Sequence[str]) -> list[dict[str, Any]]:
    """The preset's table with a verdict on each row.

    `no` where our run departs from the protocol or the row was measured otherwise; `unknown` where the paper leaves open
    what this preset decides; `yes` where neither. Rows without any of `metrics` are left out.
    """
    rows = []
    for row in TABLES.get(preset.table or "", ()):
        scores = {name: value for name, value in row.scores.items() if name in (*metrics, *PEOPLE)}
        if not scores:
            continue
        reasons = [_ASKED] if scores.keys() <= set(PEOPLE) else []
        reasons += [row.why_not] if row.why_not else []
        reasons += departures
        verdict: Verdict = "no" if reasons else "yes"
        if verdict == "yes" and preset.open:
            verdict, reasons = "unknown", [f"{name}: {text}" for name, text in preset.open.items()]
        rows.append(
            {
                "system": row.system,
                "setting": row.setting,
                "scores": scores,
                "comparable": verdict,
                "why": reasons,
                "doubt": row.doubt or None,
            }
        )
    return rows
