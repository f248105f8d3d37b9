"""The tally of a study: majorities of pairs, counts of votes, and how far raters agree (Make-A-Video, section 4.1)."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mavcli.evaluation.human import Question, Study
from mavcli.evaluation.intervals import wilson
from mavcli.evaluation.tables import TABLES
from mavcli.evaluation.votes import Vote
from mavcli.files import write_text

Answer = Literal["a", "b", "tie"]
_ANSWERS: tuple[Answer, ...] = ("a", "tie", "b")

PAPER_RATERS = 5
"""How many people judged each pair of the paper's table 3."""


@dataclass(frozen=True)
class Tally:
    """One question: how many items went to `a`, to `b` and to neither, and how many single votes did.

    An item goes to the answer that most of its raters gave; where the most is shared, to neither.
    """

    question: Question
    items: Mapping[Answer, int]
    votes: Mapping[Answer, int]
    agreement: float | None
    """Share of pairs of raters of one item that gave the same answer; None with one rater an item."""

    @property
    def decided(self) -> int:
        return self.items["a"] + self.items["b"]

    def as_dict(self) -> dict[str, Any]:
        """Shares are of the decided items, as in the paper, whose raters had no tie to choose; intervals are Wilson's, 95 %."""
        told: dict[str, Any] = {
            "items": dict(self.items),
            "votes": dict(self.votes),
            "decided": self.decided,
            "agreement": self.agreement,
        }
        for system in ("a", "b"):
            share = None
            if self.decided:
                low, high = wilson(self.items[system], self.decided)
                share = {"share": self.items[system] / self.decided, "low": low, "high": high}
            told[f"prefer_{system}"] = share
        return told


def tally(study: Study, votes: Sequence[Vote]) -> dict[Question, Tally]:
    """The majority of each item and the counts, for each question; `votes` are those that count."""
    given = _given(study, votes)
    found: dict[Question, Tally] = {}
    for question in study.questions:
        lists = [answers for (_, asked), answers in given.items() if asked == question]
        counts = Counter(majority(answers) for answers in lists)
        single = Counter(itertools.chain.from_iterable(lists))
        pairs = [x == y for answers in lists for x, y in itertools.combinations(answers, 2)]
        found[question] = Tally(
            question,
            {name: counts[name] for name in _ANSWERS},
            {name: single[name] for name in _ANSWERS},
            sum(pairs) / len(pairs) if pairs else None,
        )
    return found


def majority(answers: Sequence[Answer]) -> Answer:
    """The answer given most often; `tie` where several are."""
    (first, most), *rest = Counter(answers).most_common()
    return "tie" if rest and rest[0][1] == most else first


def sides(study: Study, votes: Iterable[Vote]) -> dict[str, int]:
    """On how many pairs, rater by rater, each system was on the left: a check of the balance."""
    shown = {(vote.rater, vote.item): vote.left for vote in votes}
    counts = Counter(study.by_id[item].system(left) for (_, item), left in shown.items())
    return {"a": counts["a"], "b": counts["b"]}


def tally_report(study: Study, votes: Sequence[Vote]) -> dict[str, Any]:
    """Everything that the votes say, ready for JSON. A pair is judged by a rater who answered every question about it."""
    given = _given(study, votes)
    answered: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for vote in votes:
        answered[vote.rater, vote.item].add(vote.question)
    whole = [place for place, questions in answered.items() if len(questions) == len(study.questions)]
    names = {vote.rater: vote.name for vote in votes}
    judged = Counter(rater for rater, _ in whole)
    return {
        "study": study.id,
        "a": study.a,
        "b": study.b,
        "forced_choice": study.forced,
        "pairs": len(study.items),
        "judged": len({item for _, item in whole}),
        "votes": len(whole),
        "half": len(answered) - len(whole),
        "raters": [
            {"name": name, "pairs": judged[rater]}
            for rater, name in sorted(names.items(), key=lambda one: (one[1], one[0]))
        ],
        "left": sides(study, votes),
        "questions": {name: found.as_dict() for name, found in tally(study, votes).items()},
        "published": [row._asdict() for row in TABLES["human"]],
        "items": [
            {
                "name": item.pair.name,
                "prompt": item.pair.prompt,
                **{
                    question: {
                        "majority": majority(answers),
                        **{name: answers.count(name) for name in _ANSWERS},
                    }
                    for question in study.questions
                    if (answers := given.get((item.id, question)))
                },
            }
            for item in study.items
            if any((item.id, question) in given for question in study.questions)
        ],
    }


def _given(study: Study, votes: Iterable[Vote]) -> dict[tuple[str, str], list[Answer]]:
    """(item, question) -> what its raters answered."""
    given: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
    for vote in votes:
        answer = "tie" if vote.answer == "tie" else study.by_id[vote.item].system(vote.answer)
        given[vote.item, vote.question].append(answer)
    return dict(given)


def write_json(path: Path, value: Any) -> None:
    """A whole file or none. Raises DiskError."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, overwrite=True)
