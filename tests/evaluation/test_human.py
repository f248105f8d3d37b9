"""Human evaluation: pairs, the study, the tally and the command; votes and the page have tests of their own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from human_study import PROMPTS, enrolled, make_clip, make_folders, study_of, votes_on

from mavcli.cli.app import run
from mavcli.errors import InputError, UsageError
from mavcli.evaluation.human import Study, check_folder, make_study, open_folder
from mavcli.evaluation.pairs import Pair, find_pairs
from mavcli.evaluation.tally import Tally, majority, tally
from mavcli.evaluation.votes import STORE, VoteStore, served_alone
from mavcli.media.image import write_png
from mavcli.media.video import probe, read_clip, write_video


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_folders(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def study(folders: tuple[Path, Path]) -> Study:
    return study_of(folders)


def counted(study: Study, rows: Sequence[tuple[str, int, str]]) -> Tally:
    return tally(study, [vote for row in rows for vote in votes_on(study, *row)])["quality"]


# -- pairs ----------------------------------------------------------------------------------------------------------------


def test_videos_of_the_same_name_are_a_pair_and_the_others_are_named(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    make_clip(tmp_path / "c" / "0.mp4", hue=1)
    make_clip(tmp_path / "c" / "extra.mp4", hue=2)
    pairs, loose = find_pairs(folders[0], tmp_path / "c")
    assert [(pair.name, pair.prompt) for pair in pairs] == [("0", "a dog surfing")]
    assert len(loose) == 6 and any("extra.mp4` has no partner" in text for text in loose)


def test_videos_of_other_names_are_paired_by_prompt(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("x", "y"):
        make_clip(tmp_path / "c" / f"{name}.mp4", hue=1, prompt="a cat flying")
    pairs, loose = find_pairs(folders[0], tmp_path / "c")
    assert [(pair.a.name, pair.b.name) for pair in pairs] == [("1.mp4", "x.mp4")]
    assert any("y.mp4" in text for text in loose)


def test_two_prompts_of_one_pair_are_refused_unless_a_file_decides(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    make_clip(tmp_path / "c" / "0.mp4", hue=1, prompt="a whale")
    with pytest.raises(InputError, match="made from `a dog surfing`.* from `a whale`"):
        find_pairs(folders[0], tmp_path / "c")
    (tmp_path / "p.csv").write_text("file,prompt\n0.mp4,a sea dog\n")
    assert find_pairs(folders[0], tmp_path / "c", prompts=tmp_path / "p.csv")[0][0].prompt == "a sea dog"
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"holds 2 prompts, .* 1 video$"):
        find_pairs(folders[0], tmp_path / "c", prompts=tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no video"),
        (lambda p: make_clip(p / "z.mp4", hue=1), "neither names nor prompts agree"),
    ],
)
def test_folders_without_pairs_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "c")
    with pytest.raises(InputError, match=message):
        find_pairs(folders[0], tmp_path / "c")


def test_faithfulness_to_nothing_is_not_asked(tmp_path: Path) -> None:
    pair = Pair("x", None, make_clip(tmp_path / "a.mp4", hue=1), make_clip(tmp_path / "b.mp4", hue=2))
    with pytest.raises(UsageError, match="faithfulness is asked"):
        make_study([pair], a="a", b="b")
    assert make_study([pair], a="a", b="b", questions=["quality"]).questions == ("quality",)


# -- the study --------------------------------------------------------------------------------------------------------------


def test_the_same_folders_give_the_same_study_and_other_videos_another(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pairs = find_pairs(*folders)[0]
    first, again = (make_study(pairs, a="ours", b="theirs") for _ in range(2))
    assert first == again
    other = [*pairs[:-1], pairs[-1]._replace(a=make_clip(tmp_path / "5.mp4", hue=9))]
    assert make_study(other, a="ours", b="theirs").id != first.id


def test_the_page_is_not_told_which_system_a_clip_is_from(study: Study) -> None:
    told = json.dumps(study.public())
    assert "ours" not in told and "theirs" not in told
    assert not any(name in told for name in ("/0.mp4", '"a"', '"b"'))
    # Within a block the systems are told in opposite orders, so the order tells nothing.
    for block in {item.block for item in study.items}:
        orders = [item.systems for item in study.items if item.block == block]
        assert sorted(orders) == [("a", "b"), ("b", "a")]


def test_a_folder_of_votes_belongs_to_one_study(study: Study, tmp_path: Path) -> None:
    open_folder(tmp_path, study)
    open_folder(tmp_path, study)
    other = make_study([item.pair for item in study.items], a="ours", b="others")
    for refuse in (open_folder, check_folder):
        with pytest.raises(UsageError, match="votes of another study"):
            refuse(tmp_path, other)


# -- the tally --------------------------------------------------------------------------------------------------------------


def test_an_item_goes_to_the_answer_that_most_raters_gave() -> None:
    assert majority(["a", "a", "b"]) == "a"
    assert majority(["a", "b"]) == "tie"
    assert majority(["tie", "tie", "a"]) == "tie"
    assert majority(["a", "a", "b", "b", "tie"]) == "tie"
    assert majority(["b"]) == "b"


def test_shares_are_of_decided_items_with_wilsons_interval(study: Study) -> None:
    rows = [(f"r{r}", item, choice) for item, choice in enumerate("aaab") for r in range(3)]
    rows += [("r0", 4, "a"), ("r1", 4, "b")]
    found = counted(study, rows)
    assert found.items == {"a": 3, "tie": 1, "b": 1} and found.votes == {"a": 10, "tie": 0, "b": 4}
    told = found.as_dict()
    assert told["prefer_a"] == pytest.approx({"share": 0.75, "low": 0.3006, "high": 0.9544}, abs=1e-4)
    assert told["prefer_b"]["share"] == 0.25 and found.agreement == pytest.approx(12 / 13)


def test_nothing_decided_has_no_share(study: Study) -> None:
    assert counted(study, [("anna", 0, "tie")]).as_dict()["prefer_a"] is None


# -- the command ------------------------------------------------------------------------------------------------------------


def test_the_tally_is_a_table_and_json(
    folders: tuple[Path, Path],
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", "human", *map(str, folders)]
    assert run([*command, "--tally"]) == 4
    assert "holds no vote yet" in capsys.readouterr().err
    assert not Path("outputs").exists(), "counting makes no folder"
    open_folder(Path("outputs/human-ours-theirs"), study)
    store = VoteStore(Path("outputs/human-ours-theirs") / STORE, study)
    for rater in ("anna", "ben"):
        for number, choice in enumerate(("a", "a", "a", "a", "b", "tie")):
            for vote in votes_on(study, rater, number, choice):
                store.add(enrolled(store, rater, vote))
    assert run([*command, "--tally"]) == 0
    shown = capsys.readouterr()
    assert "6 of 6 pairs judged, 12 votes of 2 raters" in shown.out
    assert re.search(r"quality +80\.0 % \[37\.6, 96\.4\] +20\.0 % \[3\.6, 62\.4\] +4 / 1 / 1", shown.out)
    assert "the paper's table 3 has 5 each" in shown.err
    assert run([*command, "--tally", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    written = json.loads(Path("outputs/human-ours-theirs/tally.json").read_text())
    assert {**written, "out": told["out"]} == told
    assert told["items"][0]["prompt"] == "a dog surfing" and told["items"][0]["quality"]["majority"] == "a"


def test_a_study_names_what_raters_could_not_see_before_it_begins_and_shows_copies_if_asked(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    video = np.full((5, 48, 48, 3), 90, np.uint8)
    Path("theirs").mkdir()
    write_video("theirs/0.mkv", video, fps=20, codec="ffv1")
    command = ["eval", "human", str(folders[0]), "theirs", "--question", "quality", "--static", "page"]
    assert run(command) == 4
    err = capsys.readouterr().err
    assert (
        "1 of 2 videos not every browser plays:" in err
        and "`theirs/0.mkv` holds FFmpeg video codec #1" in err
    )
    assert "--convert" in err and not Path("page").exists() and not Path("outputs").exists()
    assert run([*command, "--convert"]) == 0
    shown = [read_clip(path) for path in Path("page/media").iterdir() if path.suffix == ".mp4"]
    assert sorted(len(clip.frames) for clip in shown) == [5, 10]
    key = json.loads(Path("outputs/human-ours-theirs/study.json").read_text())
    assert key["items"][0]["b"] == "theirs/0.mkv", "the study is one of the videos as they are"
    assert run([*command[:-2], "--tally"]) == 4 and "holds no vote yet" in capsys.readouterr().err


def test_a_wrong_command_is_one_line(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", "human", *map(str, folders)]
    assert run([*command, "--question", "beauty"]) == 2
    assert "there is no question `beauty`" in capsys.readouterr().err
    assert run([*command, "--votes", "x.jsonl"]) == 2
    assert not Path("outputs").exists()


def test_a_second_server_on_a_folder_is_one_line(
    folders: tuple[Path, Path], study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_folder(tmp_path / "out", study)
    with served_alone(tmp_path / "out"):
        assert run(["eval", "human", *map(str, folders), "-o", str(tmp_path / "out"), "--port", "0"]) == 6
    err = capsys.readouterr().err
    assert err.startswith(f"error: `{tmp_path}/out` is served by another `mav eval human` already\n")


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "[1]", '"x"', "\ud800"], ids=["cut", "deep", "list", "text", "no UTF-8"]
)
def test_a_key_that_is_damaged_is_one_line(
    folders: tuple[Path, Path], tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert run(["eval", "human", *map(str, folders), "-o", str(tmp_path), "--tally"]) in (2, 4)
    assert capsys.readouterr().err.startswith("error: `")


# -- whatever lies in a folder ------------------------------------------------------------------------------------------------


def test_what_cannot_be_shown_is_left_out_by_name_and_the_other_pairs_are_judged(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "theirs"
    for number in range(6):
        make_clip(other / f"{number}.mp4", hue=number, prompt=PROMPTS[number])
    (other / "0.mp4").write_bytes((other / "0.mp4").read_bytes()[:600])
    (other / "1.json").write_text("[" * 100_000)
    (other / "2.json").unlink()
    os.mkfifo(other / "2.json")
    os.mkfifo(other / "pipe.mp4")
    (other / "3.json").write_text('{"by": "another program", "x": 1e400}')
    pairs, told = find_pairs(folders[0], other)
    assert [pair.name for pair in pairs] == ["1", "2", "3", "4", "5"]
    assert [pair.prompt for pair in pairs] == list(PROMPTS[1:])
    for text in ("0.mp4` is not a video", "1.json` is no JSON", "2.json` is no regular file", "3.json` is of another program",
                 "pipe.mp4` is no regular file"):  # fmt: skip
        assert sum(text in line for line in told) == 1, text
    for pair in pairs:
        pair.b.write_bytes(b"")
    with pytest.raises(InputError, match="every pair has a video that cannot be read"):
        find_pairs(folders[0], other)


# -- interpolation ------------------------------------------------------------------------------------------------------------


def put_frames(folder: Path, count: int, *, name: str = "frame_{:03}.png", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_png(folder / name.format(first + i), np.full((32, 32, 3), 20 * i, np.uint8))
    return folder


def test_films_frames_stand_beside_the_videos_of_the_same_clips(tmp_path: Path) -> None:
    """FILM's layout: what it was given, `interpolated_frames/` and `interpolated.mp4` in a folder for each clip.

    Of 3 frames `mav interpolate --factor 4` makes 12, the last three hold; FILM's 9 or 5 end where the clip's last one is.
    """
    for name, count in (("dog", 9), ("Cat_2", 5)):
        run_facts = {
            "mav_run": 1,
            "kind": "interpolate",
            "inputs": [{"path": f"/clips/{name}.mov", "sha256": "0"}],
            "options": {"factor": 4},
        }
        file = make_clip(tmp_path / "mav" / f"{name.lower()}-x4-0.mp4", hue=3, frames=12)
        file.with_suffix(".json").write_text(json.dumps(run_facts))
        put_frames(tmp_path / "film" / name / "interpolated_frames", count)
        put_frames(tmp_path / "film" / name, 2, name="given{}.png")
        make_clip(tmp_path / "film" / name / "interpolated.mp4", hue=9)
    pairs, told = find_pairs(tmp_path / "mav", tmp_path / "film")
    assert told == [] and [(pair.name, pair.a.name, pair.b.parent.name) for pair in pairs] == [
        ("cat-2", "cat_2-x4-0.mp4", "Cat_2"),
        ("dog", "dog-x4-0.mp4", "dog"),
    ]
    assert [pair.fps for pair in pairs] == [10, 20], "from the first frame to the last both last as long"
    assert find_pairs(tmp_path / "mav", tmp_path / "film", fps=Fraction(24))[0][0].fps == 24
    study = make_study(pairs, a="mav", b="film", questions=["motion"])
    again = make_study(
        find_pairs(tmp_path / "mav", tmp_path / "film")[0], a="mav", b="film", questions=["motion"]
    )
    write_png(pairs[0].b / "frame_003.png", np.zeros((32, 32, 3), np.uint8), overwrite=True)
    assert again.id == study.id != make_study(pairs, a="mav", b="film", questions=["motion"]).id


def test_rifes_videos_are_known_by_their_clips_and_folders_of_frames_by_their_names(tmp_path: Path) -> None:
    make_clip(tmp_path / "mav" / "dog-x4-0.mp4", hue=3)
    make_clip(tmp_path / "rife" / "dog_4X_60fps.mp4", hue=4)
    assert [pair.name for pair in find_pairs(tmp_path / "mav", tmp_path / "rife")[0]] == ["dog"]
    put_frames(tmp_path / "png" / "dog-x4-0", 5, name="{:07}.png")
    (pair,), _ = find_pairs(tmp_path / "mav", tmp_path / "png")
    assert pair.name == "dog-x4-0" and pair.fps == Fraction(20 * 4, 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "dog" / "frame_002.png").unlink(), "lacks frame 2: `frame_003.png` follows `frame_001.png`"),
        (lambda p: write_png(p / "dog" / "frame_3.png", np.zeros((8, 8, 3), np.uint8)), "are both frame 3"),
        (lambda p: make_clip(p / "dog.mp4", hue=1), "two videos named `dog`: .*film/dog` and .*film/dog.mp4`"),
        (lambda p: (p / "dog").rename(p / "dog_4X_60fps") and put_frames(p / "DOG_2X", 3), "are both of the clip `dog`"),
    ],
    ids=["gap", "twice", "two of a name", "two of a clip"],
)  # fmt: skip
def test_frames_that_could_be_meant_in_two_ways_are_refused_by_name(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make_clip(tmp_path / "mav" / "dog.mp4", hue=3)
    put_frames(tmp_path / "film" / "dog", 5)
    make(tmp_path / "film")
    with pytest.raises(InputError, match=message):
        find_pairs(tmp_path / "mav", tmp_path / "film")


def test_two_folders_of_frames_need_a_rate(tmp_path: Path) -> None:
    for system in ("film", "rife"):
        put_frames(tmp_path / system / "dog", 5)
    with pytest.raises(UsageError, match="nothing says how fast"):
        find_pairs(tmp_path / "film", tmp_path / "rife")
    assert find_pairs(tmp_path / "film", tmp_path / "rife", fps=Fraction(12))[0][0].fps == 12


def test_a_study_of_interpolation_shows_frames_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(Path("mav/dog.mp4"), hue=3, frames=9)
    put_frames(Path("film/dog/interpolated_frames"), 5)
    command = ["eval", "human", "mav", "film", "--question", "motion", "--forced-choice"]
    assert run([*command, "--static", "page"]) == 0
    shown = [path for path in Path("page/media").iterdir() if probe(path).frames == 5]
    clip = read_clip(shown[0])
    assert clip.rate == 10 and [round(float(frame.mean()) / 20) for frame in clip.frames] == list(range(5))
    key = json.loads(Path("outputs/human-mav-film/study.json").read_text())
    assert key["forced_choice"] is True and key["items"][0]["b"] == "film/dog/interpolated_frames"
    assert run([*command, "--tally"]) == 4 and "holds no vote yet" in capsys.readouterr().err
    assert run([*command, "--tally", "--fps", "0"]) == 2 and "wanted a rate" in capsys.readouterr().err
    assert run([*command[:-1], "--tally"]) == 2 and "another study" in capsys.readouterr().err
