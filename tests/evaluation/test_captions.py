"""Each video gets its own prompt, from a file or from its run, or one line says which has none."""

import json
from pathlib import Path

import pytest
from standin_networks import write_clips

from mavcli.errors import InputError
from mavcli.evaluation.captions import prompts_of
from mavcli.evaluation.clips import Folder, open_folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    write_clips(tmp_path / "set", 3, frames=2)
    return open_folder(tmp_path / "set")


def test_lines_belong_to_the_videos_in_the_order_of_their_names(tmp_path: Path, folder: Folder) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\n\nc\n")
    assert prompts_of(folder, file) == ["a", "b", "c"]
    drawn = open_folder(folder.root, limit=2, seed=3)
    assert prompts_of(drawn, file) == [["a", "b", "c"][place] for place in drawn.places]
    file.write_text("a\nb\n")
    with pytest.raises(InputError, match="holds 2 prompts, .* 3 videos"):
        prompts_of(folder, file)


def test_a_table_names_its_videos(tmp_path: Path, folder: Folder) -> None:
    table = tmp_path / "t.csv"
    table.write_text("video,prompt\nclip02,c\nclip00.mkv,a\nclip01,b\n")
    assert prompts_of(folder, table) == ["a", "b", "c"]
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"video": "clip00", "caption": "a"}\n{"video": "clip01", "text": "b"}\n')
    with pytest.raises(InputError, match=r"has no prompt for `clip02.mkv`"):
        prompts_of(folder, lines)
    lines.write_text('{"video": "clip00"}\n')
    with pytest.raises(
        InputError, match=r"t.jsonl` has the columns `video`, wanted one of `video`.* one of `prompt`"
    ):
        prompts_of(folder, lines)
    lines.write_text('{"video": "x", "text": "a"}\n{"video": "x", "text": "b"}\n')
    with pytest.raises(InputError, match=r"t.jsonl:2`: `x` has another prompt further up"):
        prompts_of(folder, lines)


def test_a_run_says_its_own_prompt(folder: Folder) -> None:
    for i, path in enumerate(folder.files[:2]):
        path.with_suffix(".json").write_text(json.dumps({"prompt": f"text {i}"}))
    with pytest.raises(InputError, match="clip02.mkv` does not say which prompt"):
        prompts_of(folder, None)
    folder.files[2].with_suffix(".json").write_text(json.dumps({"prompt": "text 2"}))
    assert prompts_of(folder, None) == ["text 0", "text 1", "text 2"]
