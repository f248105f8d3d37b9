"""Which files and frames are measured, and what is said of those that cannot be."""

from pathlib import Path

import numpy as np
import pytest
from standin_networks import write_clips

from mavcli.errors import InputError, UsageError
from mavcli.evaluation.clips import FrameChoice, open_folder, read_frames
from mavcli.media.video import read_clip, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 8 fps, frame f a grey of 10 f."""
    path = tmp_path_factory.mktemp("clip") / "a.mkv"
    video = np.stack([np.full((16, 16, 3), 10 * f, np.uint8) for f in range(20)])
    write_video(path, video, fps=8, codec="ffv1")
    return path


def greys(path: Path, choice: FrameChoice) -> list[int]:
    return (read_frames(path, choice)[:, 0, 0, 0] // 10).tolist()


def test_frames_are_taken_as_they_were_asked_for(clip: Path) -> None:
    assert greys(clip, FrameChoice(4)) == [0, 1, 2, 3]
    assert greys(clip, FrameChoice(4, stride=3)) == [0, 3, 6, 9]
    assert greys(clip, FrameChoice(None)) == list(range(20))
    assert greys(clip, FrameChoice(None, stride=7)) == [0, 7, 14]
    assert greys(clip, FrameChoice(4, start="centre")) == [8, 9, 10, 11]
    assert greys(clip, FrameChoice(4, fps=4)) == [0, 2, 4, 6]
    assert greys(clip, FrameChoice(None, fps=2)) == [0, 4, 8, 12, 16]
    assert greys(clip, FrameChoice(1)) == [0]


def test_a_clip_is_never_shorter_than_was_asked_for(clip: Path) -> None:
    for choice in (
        FrameChoice(21),
        FrameChoice(8, stride=3),
        FrameChoice(11, fps=4),
        FrameChoice(21, start="centre"),
    ):
        with pytest.raises(InputError, match=rf"`{clip}` has \d+ frames.*, {choice.count} are wanted"):
            read_frames(clip, choice)
    with pytest.raises(InputError, match="shows 8 fps, at 16 fps a frame would be missing or shown twice"):
        read_frames(clip, FrameChoice(8, fps=16))


def test_choices_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(UsageError, match="give one"):
        FrameChoice(4, stride=2, fps=4)
    with pytest.raises(UsageError, match="at least 1"):
        FrameChoice(0)


def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    write_video(whole, np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), fps=8)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (broken, empty):
        for choice in (FrameChoice(16), FrameChoice(None)):
            with pytest.raises(InputError, match=f"`{path}`") as caught:
                read_frames(path, choice)
            assert "\n" not in caught.value.message


def test_a_folder_is_its_videos_by_name_and_a_draw_of_them_by_seed(tmp_path: Path) -> None:
    write_clips(tmp_path / "a" / "nested", 3)
    write_clips(tmp_path / "a", 2)
    (tmp_path / "a" / "clip00.png").write_bytes(b"a contact sheet")
    whole = open_folder(tmp_path / "a")
    names = [whole.name(i) for i in range(len(whole))]
    assert names == sorted(names) and len(names) == 5
    drawn = open_folder(tmp_path / "a", limit=3, seed=1)
    assert [whole.files[i] for i in drawn.places] == list(drawn.files)
    assert drawn.files == open_folder(tmp_path / "a", limit=3, seed=1).files
    assert {open_folder(tmp_path / "a", limit=3, seed=s).files for s in range(8)} != {drawn.files}


def test_a_folder_with_too_few_or_no_videos_is_refused(tmp_path: Path) -> None:
    write_clips(tmp_path / "a", 2)
    with pytest.raises(InputError, match="holds 2 videos, 3 are wanted"):
        open_folder(tmp_path / "a", limit=3)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no video")
    with pytest.raises(InputError, match="holds 1 files, none of them a video"):
        open_folder(tmp_path / "b")
    with pytest.raises(InputError, match="does not exist"):
        open_folder(tmp_path / "c")


def test_the_frames_of_a_choice_are_those_of_the_whole_clip(clip: Path) -> None:
    whole = read_clip(clip).frames
    assert np.array_equal(read_frames(clip, FrameChoice(5, stride=2)), whole[:9:2])
