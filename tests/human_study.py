"""A small study of six pairs for the tests of `mav eval human`: its videos, its votes and who casts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mavcli.evaluation.human import Study, make_study
from mavcli.evaluation.pairs import find_pairs
from mavcli.evaluation.votes import Vote, VoteStore, read_vote
from mavcli.media.video import write_video

PROMPTS = (
    "a dog surfing",
    "a cat flying",
    "a lion driving",
    "a frog skating",
    "a pig falling",
    "a bear spinning",
)


def make_clip(path: Path, *, hue: int, frames: int = 10, prompt: str | None = None) -> Path:
    """A square that moves over a colour of its own."""
    video = np.full((frames, 48, 48, 3), (hue % 256, 90, 255 - hue % 256), np.uint8)
    for i in range(frames):
        video[i, 8:20, 2 * i : 2 * i + 12] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, video, fps=20)
    if prompt is not None:
        path.with_suffix(".json").write_text(json.dumps({"mav_run": 1, "prompt": prompt, "seed": 4}))
    return path


def make_folders(root: Path, *, pairs: int = 6, hue: int = 0) -> tuple[Path, Path]:
    """The folders `ours` and `theirs`; the clips of the second system are a little longer."""
    for number, prompt in enumerate(PROMPTS[:pairs]):
        make_clip(root / "ours" / f"{number}.mp4", hue=hue + 20 * number, prompt=prompt)
        make_clip(root / "theirs" / f"{number}.mp4", hue=hue + 20 * number + 128, frames=13, prompt=prompt)
    return root / "ours", root / "theirs"


def study_of(folders: tuple[Path, Path], *, forced: bool = False) -> Study:
    return make_study(find_pairs(*folders)[0], a="ours", b="theirs", forced=forced)


def token(rater: str) -> str:
    """A rater's token, made of the name so that tests can tell whose it is."""
    return f"token-of-{rater}".ljust(20, "-")


def vote_record(
    study: Study,
    rater: str,
    number: int,
    choice: str = "a",
    *,
    question: str = "quality",
    revision: int = 0,
    **changed: Any,
) -> dict[str, Any]:
    """What the page sends: `choice` is a, b or tie."""
    item = study.items[number]
    answer = "tie" if choice == "tie" else next(clip for clip in item.clips if item.system(clip) == choice)
    return {
        "vote": 2,
        "study": study.id,
        "rater": token(rater),
        "name": rater,
        "id": f"{rater}-{item.id}-{question}-{revision}",
        "item": item.id,
        "question": question,
        "revision": revision,
        "answer": answer,
        "left": item.clips[0],
        "right": item.clips[1],
        "seconds": 3.2,
        "at": f"2026-11-22T10:00:0{revision}Z",
    } | changed


def votes_on(study: Study, rater: str, number: int, choice: str = "a", *, revision: int = 0) -> list[Vote]:
    """The same answer to every question about one pair."""
    return [
        read_vote(vote_record(study, rater, number, choice, question=question, revision=revision), study)
        for question in study.questions
    ]


def earlier_line(study: Study, rater: str, number: int, choice: str = "a", *, revision: int = 0) -> str:
    """A vote as the first mav wrote it: by name, with all answers to a pair in one line."""
    one = vote_record(study, rater, number, choice, revision=revision)
    line = {key: one[key] for key in ("study", "item", "revision", "left", "right", "seconds", "at")}
    return json.dumps(
        {"vote": 1, "rater": rater, **line, "answers": dict.fromkeys(study.questions, one["answer"])}
    )


def enrolled(store: VoteStore, rater: str, vote: Vote) -> Vote:
    """The vote under a token that the store has given out."""
    known = {one.name: one.rater for one in store.votes()}
    return vote._replace(rater=known.get(rater) or store.enrol(rater), name=rater)
