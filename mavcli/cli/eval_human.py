"""`mav eval human A_DIR B_DIR`: people compare two sets of videos, as in the paper's table 3."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mavcli.cli.console import Console, table
from mavcli.cli.options import ForceOption, JsonOption, QuietOption
from mavcli.errors import Interrupted, UsageError, counted

if TYPE_CHECKING:
    from mavcli.evaluation.human import Study
    from mavcli.evaluation.pairs import Pair


def human(
    a: Annotated[
        Path, typer.Argument(metavar="A_DIR", help="Videos of one system, or folders of numbered frames.")
    ],
    b: Annotated[
        Path, typer.Argument(metavar="B_DIR", help="Those of the other: of the same names, clips or prompts.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="What each pair should show, where the videos do not tell: a line a pair, or CSV or JSONL.",
        ),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            metavar="NAME",
            help="quality, faithfulness or motion; repeatable [quality, faithfulness]",
        ),
    ] = None,
    forced: Annotated[
        bool,
        typer.Option(
            "--forced-choice", help="Raters have to choose one of the two, as in the paper: no tie."
        ),
    ] = False,
    fps: Annotated[
        str | None,
        typer.Option(
            "--fps",
            metavar="RATE",
            help="Rate of folders of frames [from the first frame to the last as long as the other video]",
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, metavar="N", help="Port on 127.0.0.1; 0 takes a free one."),
    ] = 8765,
    static: Annotated[
        Path | None,
        typer.Option(
            "--static", metavar="DIR", help="Write the page as a folder to send to raters, then stop."
        ),
    ] = None,
    tally: Annotated[bool, typer.Option("--tally", help="Count the votes, then stop.")] = False,
    votes: Annotated[
        list[Path] | None,
        typer.Option(
            "--votes", metavar="FILE", help="With --tally: votes that a rater sent back; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the votes [outputs/human-A-B]"),
    ] = None,
    convert: Annotated[
        bool,
        typer.Option("--convert", help="Show H.264 copies of the videos that not every browser plays."),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Let people compare two sets of videos, and count their votes.

    A page on 127.0.0.1 shows pair after pair, in an order and on sides of each rater's own, and asks which video looks
    better and then, with the text, which shows it better. Videos that not every browser plays are named before it begins.
    An answer is saved when the page says so; the same command goes on where it was stopped. `--tally` counts, also while
    people vote: the majority of each pair, and shares with Wilson's intervals.
    """
    with Console(quiet=quiet, json=json) as console:
        from mavcli.evaluation import human as people
        from mavcli.evaluation.human_server import write_static
        from mavcli.evaluation.pairs import find_pairs
        from mavcli.evaluation.playable import COPIES, h264_copies, refuse_unplayed, shortened, unplayed_of
        from mavcli.evaluation.votes import served_alone

        asked = tuple(questions or ("quality", "faithfulness"))
        for name in asked:
            if name not in people.QUESTIONS:
                raise UsageError(
                    f"there is no question `{name}`", hint=f"--question {' or '.join(people.QUESTIONS)}"
                )
        if votes and not tally:
            raise UsageError("--votes is given without --tally", hint="add --tally")
        pairs, notes = find_pairs(a, b, prompts=prompts, fps=_rate(fps))
        for text in shortened(notes, tail="and {:,} more without a partner or left out"):
            console.warning(text)
        names = _names(a, b)
        films = [path for pair in pairs for path in (pair.a, pair.b) if not path.is_dir()]
        unplayed = {} if tally else unplayed_of(films)
        if not convert:
            refuse_unplayed(
                unplayed,
                of=len(films),
                hint="the same command with --convert shows raters copies in H.264",
            )
        study = people.make_study(pairs, a=names[0], b=names[1], questions=asked, forced=forced)  # type: ignore[arg-type]
        folder = out or Path("outputs") / f"human-{'-'.join(_slug(name) for name in names)}"
        people.check_folder(folder, study)
        if tally:
            return _tally(console, study, folder, votes or [])
        people.open_folder(folder, study)
        with served_alone(folder) if static is None else nullcontext():
            copies = h264_copies(unplayed, folder / COPIES, report=console)
            copies |= _copies_of_frames(console, pairs, folder / COPIES)
            shown = people.with_files(study, copies)
            if static is None:
                return _serve(console, shown, folder, port)
        page = write_static(static, shown, force=force)
        console.message(
            f"{counted(len(pairs), 'pair')}; raters open the page and send their votes back: put the files into {folder}"
        )
        console.result(page)
        console.result_object({"page": str(page), "pairs": len(pairs), "study": study.id, "out": str(folder)})


def _serve(console: Console, study: Study, folder: Path, port: int) -> None:
    """Serve the page until a signal comes. Raises Interrupted for SIGTERM: Ctrl-C is how one ends it."""
    from mavcli.evaluation.human_server import HumanServer
    from mavcli.evaluation.votes import STORE, VoteStore, gather_votes

    pairs = counted(len(study.items), "pair")
    store = VoteStore(folder / STORE, study)
    server = None
    try:
        known, told = gather_votes(folder, study)
        for text in told:
            console.warning(text)
        server = HumanServer(study, store, port=port)
        console.message(f"{pairs}, {counted(len(known), 'answer')} so far, into {store.path}; Ctrl-C stops")
        console.result(server.url)
        console.result_object(
            {"url": server.url, "pairs": len(study.items), "study": study.id, "votes": str(store.path)}
        )
        server.serve_forever(poll_interval=0.2)
    except Interrupted as stopped:
        console.message(f"{counted(len(store), 'answer')}; `--tally` counts them")
        if stopped.exit_code != 130:
            raise
    finally:
        if server is not None:
            server.server_close()
        store.close()


def _copies_of_frames(console: Console, pairs: list[Pair], place: Path) -> dict[Path, Path]:
    """Folder of frames -> the video that the page shows."""
    from mavcli.evaluation.frame_folders import frames_copy

    folders = [(path, pair) for pair in pairs for path in pair.frame_folders]
    if folders:
        console.stage(f"frames to H.264 in {place}", len(folders))
    copies = {}
    for path, pair in folders:
        copies[path] = frames_copy(path, pair.rate, place)
        console.advance(1)
    for rate, count in sorted(Counter(pair.rate for _, pair in folders).items()):
        console.message(f"{counted(count, 'folder')} of frames shown at {float(rate):g} fps")
    return copies


def _rate(text: str | None) -> Fraction | None:
    """`24` or `24000/1001`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(?:/(\d{1,6}))?", text, re.ASCII)
    below = int(match[2] or 1) if match else 0
    rate = Fraction(match[1]) / below if match and below else Fraction(0)
    if not 1 <= rate <= 1000:
        raise UsageError(f"--fps {text}, wanted a rate from 1 to 1000", hint="--fps 24, or --fps 24000/1001")
    return rate


def _tally(console: Console, study: Study, folder: Path, extra: list[Path]) -> None:
    from mavcli.errors import InputError
    from mavcli.evaluation.tally import PAPER_RATERS, tally_report, write_json
    from mavcli.evaluation.votes import gather_votes
    from mavcli.files import make_folder

    votes, told = gather_votes(folder, study, extra)
    for text in told:
        console.warning(text)
    if not votes:
        raise InputError(
            f"`{folder}` holds no vote yet", hint="the same command without --tally opens the page"
        )
    report = tally_report(study, votes)
    path = folder / "tally.json"
    make_folder(folder)
    write_json(path, report)
    for line in tally_lines(report):
        console.result(line)
    few = min(
        sum(item[question][name] for name in ("a", "tie", "b"))
        for item in report["items"]
        for question in study.questions
        if question in item
    )
    if report["half"]:
        console.warning(
            f"{counted(report['half'], 'pair')} half judged by a rater, not all questions answered"
        )
    if report["judged"] < report["pairs"]:
        console.warning(
            f"{report['pairs'] - report['judged']} of {counted(report['pairs'], 'pair')} without a vote"
        )
    if few < PAPER_RATERS:
        console.warning(
            f"some pairs have {counted(few, 'rater')}, the paper's table 3 has {PAPER_RATERS} each"
        )
    console.message(str(path))
    console.result_object({**report, "out": str(path)})


def tally_lines(report: dict[str, Any]) -> list[str]:
    """The tally as a table for people."""
    a, b = report["a"], report["b"]
    lines = [
        f"{a} against {b}: {report['judged']} of {counted(report['pairs'], 'pair')} judged, {counted(report['votes'], 'vote')} of "
        f"{counted(len(report['raters']), 'rater')}; {a} on the left {report['left']['a']} times, {b} {report['left']['b']}",
        "",
    ]
    forced = report["forced_choice"]
    rows = []
    for question, found in report["questions"].items():
        items, single = found["items"], found["votes"]
        rows.append(
            (
                question,
                _share(found["prefer_a"]),
                _share(found["prefer_b"]),
                f"{items['a']} / {items['tie']} / {items['b']}",
                " / ".join(str(single[name]) for name in ("a", "tie", "b") if name != "tie" or not forced),
                "" if found["agreement"] is None else f"{100 * found['agreement']:.0f} %",
            )
        )
    heads = (
        "question",
        f"prefer {a} [95 %]",
        f"prefer {b} [95 %]",
        f"pairs {a} / tie / {b}",
        "votes",
        "raters agree",
    )
    lines += table(rows, heads=heads)
    lines += ["", "shares are of the pairs that a majority decided; ties of a pair's raters stand apart"]
    paper = [
        (
            f"Make-A-Video {row['system']}, {row['setting']}" + (" (!)" if row["doubt"] else ""),
            *(
                f"{row['scores'][name]:.2f} %" if name in row["scores"] else ""
                for name in report["questions"]
            ),
        )
        for row in report["published"]
    ]
    lines += ["", *table(paper, heads=("the paper's table 3, other videos and raters", *report["questions"]))]
    lines.append("(!) which of the two rows of the paper's own prompts is which is unverified")
    return lines


def _share(found: dict[str, float] | None) -> str:
    if found is None:
        return "none decided"
    return f"{100 * found['share']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _names(a: Path, b: Path) -> tuple[str, str]:
    """What the two folders are called: their own names, as far up as they differ."""
    one, two = a.resolve(), b.resolve()
    if one.name != two.name:
        return one.name, two.name
    return f"{one.parent.name}/{one.name}", f"{two.parent.name}/{two.name}"


def _slug(name: str) -> str:
    from mavcli.engine.output import slug

    return slug(name, limit=40)
