"""Which files and frames are measured, and what is said of those that cannot be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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


def test_frames_of_a_damaged_file_count_where_they_are_whole_and_where_they_lie_is_known(
    shared_data: Path,
) -> None:
    """Wherever a choice reaches the damage, or needs to know the end that the file lacks, it is refused."""
    made, real = shared_data / "nasty_made", shared_data / "nasty_real"
    for path, choice, fault in (
        (made / "bitflips_200.mp4", FrameChoice(8), "damaged data at the beginning"),
        (made / "bitflips_200.mp4", FrameChoice(5, start="centre"), "45 of 60 frames are missing"),
        (made / "bitflips_200.mp4", FrameChoice(8, fps=10), "a frame would be missing"),
        (made / "truncated_moov_first.mp4", FrameChoice(5, start="centre"), "damaged data after 13 frames"),
        (made / "truncated_moov_first.mp4", FrameChoice(None, fps=10), "damaged data after 13 frames"),
        (made / "size_change.ts", FrameChoice(None), "the picture changes from"),
        (made / "size_change.ts", FrameChoice(40), "the picture changes from"),
        (made / "size_change.ts", FrameChoice(8, fps=6), "the picture changes its size"),
    ):
        with pytest.raises(InputError, match=fault):
            read_frames(path, choice)
    assert len(read_frames(made / "truncated_moov_first.mp4", FrameChoice(13))) == 13
    assert len(read_frames(real / "decord_corrupted.mp4", FrameChoice(8, fps=4))) == 8
    assert (
        len(read_frames(real / "discard_first_keyframe.mp4", FrameChoice(None))) == 25
    )  # trimmed, not damaged
    # What says only how a whole video is shown stands in no one's way.
    assert len(read_frames(made / "interlaced_tff_h264.mp4", FrameChoice(None))) == 30


def test_one_frame_of_the_centre_is_the_one_in_the_middle(clip: Path) -> None:
    whole = read_clip(clip).frames
    for choice in (FrameChoice(1, start="centre"), FrameChoice(1, fps=8, start="centre")):
        (found,) = read_frames(clip, choice)
        middle = (len(whole) - 1) // 2
        assert any(np.array_equal(found, whole[i]) for i in (middle, middle + 1))


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
    with pytest.raises(InputError, match=r"b` is empty, a folder of videos is wanted"):
        open_folder(tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("no video")
    with pytest.raises(InputError, match=r"notes.txt` is not a video by its name"):
        open_folder(tmp_path / "b")
    (tmp_path / "b" / "more.txt").write_text("no video either")
    with pytest.raises(InputError, match=r"none of the 2 files in .*b` is a video by its name"):
        open_folder(tmp_path / "b")
    with pytest.raises(InputError, match="does not exist"):
        open_folder(tmp_path / "c")


def test_the_frames_of_a_choice_are_those_of_the_whole_clip(clip: Path) -> None:
    whole = read_clip(clip).frames
    assert np.array_equal(read_frames(clip, FrameChoice(5, stride=2)), whole[:9:2])


def test_a_folder_of_gifs_of_one_frame_is_one_of_pictures(tmp_path: Path) -> None:
    shown = [Image.new("RGB", (16, 12), (80 * i, 250, 0)) for i in range(3)]
    shown[0].save(tmp_path / "a.gif")
    shown[0].save(tmp_path / "b.avif")
    assert (
        open_folder(tmp_path, pictures=True).kind == "pictures"
        and len(open_folder(tmp_path, pictures=True)) == 2
    )
    shown[0].save(tmp_path / "c.gif", save_all=True, append_images=shown[1:])
    assert open_folder(tmp_path, pictures=True).kind == "videos"
