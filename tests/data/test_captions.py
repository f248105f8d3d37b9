"""Which text belongs to a picture, and how tables and lines of text are read: for training, `eval` and `--prompts` alike."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mavcli.cli.app import run
from mavcli.cli.generate import _texts
from mavcli.data.captions import BadTextError, captioned, words
from mavcli.data.clips import VideoFolder
from mavcli.data.pairs import ImageFolder, PairFolder
from mavcli.data.tables import Table
from mavcli.errors import InputError
from mavcli.evaluation.captions import prompts_of
from mavcli.evaluation.clips import Folder
from mavcli.media.image import write_png

CASES = Path(__file__).parent / "cases"


def captions(root: Path | str) -> dict[str, str]:
    return {pair.name: pair.caption for pair in PairFolder(root).pairs}


def pictures(root: Path, *names: str) -> None:
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(root / "some.tmp", np.full((8, 8, 3), 20 * level, np.uint8))
        (root / "some.tmp").rename(root / name)


def packed(root: Path, path: Path, *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for file in sorted(root.iterdir()):
            archive.add(file, file.name)
    return path


# -- tables -----------------------------------------------------------------------------------------------------------------


def test_a_quoted_caption_over_two_lines_is_one_caption():
    assert captions(CASES / "csv_multiline") == {
        "0.png": "a dog surfing on the beach", "1.png": "plain", "2.png": "line one line two"}  # fmt: skip


def test_a_row_ends_at_a_line_feed_and_nowhere_else():
    assert captions(CASES / "csv_u2028") == {
        "0.png": "a dog surfing", "1.png": "price and more", "2.png": "page break", "3.png": "fine"}  # fmt: skip
    assert captions(CASES / "jsonl_u2028") == {"0.png": "a dog surfing", "1.png": "b c", "2.png": "ok"}


def test_a_row_with_more_or_fewer_columns_than_the_header_is_rejected_with_its_line():
    folder = PairFolder(CASES / "csv_ragged")
    assert {pair.name: pair.caption for pair in folder.pairs} == {"2.png": "three", "3.png": "four"}
    assert list(folder.rejected) == ["captions.csv:2", "captions.csv:3"]
    assert folder.rejected["captions.csv:2"].startswith("has 3 columns, its header 2")
    assert folder.rejected["captions.csv:3"].startswith("has 1 column, its header 2")


@pytest.mark.parametrize("rows", [3, 3000])
def test_a_quote_that_never_closes_is_exit_4_with_its_line(rows, tmp_path, capsys):
    pictures(tmp_path, "0.png")
    lines = ["file,caption", "0.png,fine", '1.png,"wide screen picture of a dog']
    lines += [
        f"missing{i}.png,some caption that is long enough to be a caption of a picture" for i in range(rows)
    ]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    assert run(["data", "check", str(tmp_path)]) == 4
    assert "captions.csv:3` opens a quote that is" in capsys.readouterr().err


def test_a_quote_that_another_rows_quote_closes_is_exit_4_with_both_lines(tmp_path):
    pictures(tmp_path, "0.png")
    (tmp_path / "c.csv").write_text('file,caption\n0.png,"wide\n1.png,"tall\n2.png,x\n')
    with pytest.raises(InputError, match=r"c\.csv:2` opens a quote that ends in line 3") as raised:
        PairFolder(tmp_path)
    assert raised.value.exit_code == 4


def test_a_field_beyond_the_limit_of_csv_is_exit_4_with_its_line(tmp_path):
    pictures(tmp_path, "0.png")
    (tmp_path / "c.csv").write_text(f"file,caption\n0.png,x\n0.png,{'long ' * 40_000}\n")
    with pytest.raises(InputError, match=r"c\.csv:3` has a field larger than field limit"):
        PairFolder(tmp_path)


def test_a_row_with_a_wrong_quote_inside_is_rejected_and_the_others_are_used(tmp_path):
    pictures(tmp_path, "0.png", "1.png")
    (tmp_path / "c.csv").write_text('file,caption\n0.png,"a "wide" dog"\n1.png,"a ""wide"" dog"\n')
    folder = PairFolder(tmp_path)
    assert [pair.caption for pair in folder.pairs] == ['a "wide" dog']
    assert "behind a closing quote" in folder.rejected["c.csv:2"]


def test_semicolons_and_tabs_divide_columns_too(tmp_path):
    assert captions(CASES / "csv_semicolon") == {"0.png": "one", "1.png": "two"}
    pictures(tmp_path, "0.png")
    (tmp_path / "c.tsv").write_bytes("\ufefffile\tcaption\r\n0.png\ta dog, surfing\r\n".encode())
    assert captions(tmp_path) == {"0.png": "a dog, surfing"}


def test_a_table_with_other_columns_is_named_where_nothing_else_has_captions(tmp_path):
    pictures(tmp_path, "0.png")
    (tmp_path / "c.csv").write_text("file|caption\n0.png|one\n")
    with pytest.raises(InputError, match=r"c\.csv` has the columns `file\|caption`, wanted one of `file`"):
        PairFolder(tmp_path)


def test_a_table_whose_lines_end_at_carriage_returns_is_named(tmp_path):
    pictures(tmp_path, "0.png")
    (tmp_path / "c.csv").write_bytes(b"file,caption\r0.png,one\r")
    with pytest.raises(InputError, match=r"c\.csv:1` has a carriage return outside of quotes"):
        PairFolder(tmp_path)


BAD = [["one", "two"], {"en": "one"}, True]


def test_a_caption_that_is_a_list_or_an_object_rejects_its_row(tmp_path):
    pictures(tmp_path, "0.png")
    rows = [{"file": "0.png", "caption": value} for value in (*BAD, 7, "fine", "half \ud83d")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"file": "0.png"}\n')
    folder = PairFolder(tmp_path)
    assert [pair.caption for pair in folder.pairs] == ["7", "fine"]
    assert folder.rejected == {
        "m.jsonl:1": "has a caption that has a list, wanted one text",
        "m.jsonl:2": "has a caption that has an object, wanted one text",
        "m.jsonl:3": "has a caption that has true or false, wanted one text",
        "m.jsonl:6": "has a caption that is not UTF-8 text",
        "m.jsonl:7": "lacks a file or a caption",
    }


def test_parquet_goes_by_the_same_rules(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures(tmp_path, "0.png")
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"file": ["0.png"], "caption": ["a\u2028dog\n surfing"]}), path)
    assert captions(tmp_path) == {"0.png": "a dog surfing"}
    parquet.write_table(pyarrow.table({"File": ["0.png", "0.png"], "caption": [["one", "two"], None]}), path)
    with pytest.raises(
        InputError, match=r"1 x has a caption that has a list, wanted one text; 1 x has an empty caption"
    ):
        PairFolder(tmp_path)


def test_a_row_that_is_not_utf8_is_rejected_alone_and_utf16_is_named(tmp_path):
    pictures(tmp_path, "0.png")
    (tmp_path / "c.csv").write_bytes("file,caption\n0.png,café\n0.png,fine\n".encode("latin-1"))
    folder = PairFolder(tmp_path)
    assert [pair.caption for pair in folder.pairs] == ["fine"]
    assert folder.rejected == {"c.csv:2": "has a caption that is not UTF-8 text"}
    (tmp_path / "c.csv").write_bytes("file,caption\n0.png,fine\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"c\.csv` is UTF-16 text"):
        PairFolder(tmp_path)


# -- texts beside pictures and in shards ------------------------------------------------------------------------------------


def test_names_with_dots_have_their_own_captions_in_a_tar():
    assert captions(CASES / "dotkeys") == {
        f"a.tar/{name}": text
        for i in range(3)
        for name, text in ((f"{i}.5 mm photo.jpg", f"cap {i}"), (f"img.{i}.jpg", f"dot {i}"))
    }


@pytest.mark.parametrize("shard", [False, True])
def test_the_text_of_a_picture_is_found_alike_beside_it_and_in_a_tar(shard, tmp_path):
    root = tmp_path / "set"
    pictures(root, "a.1.png", "a.2.png", "b.left.png", "b.right.png", "c.png", "d.JPG", "e.png", "f.png", "g.png", "h.png",
             "i.png", "k.png")  # fmt: skip
    for name, text in {
        "a.1.txt": "one", "b.txt": "shared\n key", "c.txt": "this", "c.caption": "that", "d.TXT": "upper case",
        "e.caption": "by caption", "f.json": '{"caption": "by json", "url": "x"}', "g.json": '{"caption": ["a", "b"]}',
        "h.txt": "same", "h.json": '{"text": " same "}', "i.json": '{"url": "x"}', "k.png.txt": "whole name",
    }.items():  # fmt: skip
        (root / name).write_text(text)
    folder = PairFolder(packed(root, tmp_path / "s.tar")) if shard else PairFolder(root)
    place = "s.tar/" if shard else ""
    assert {pair.name.removeprefix(place): pair.caption for pair in folder.pairs} == {
        "a.1.png": "one", "b.left.png": "shared key", "b.right.png": "shared key", "d.JPG": "upper case",
        "e.png": "by caption", "f.png": "by json", "h.png": "same", "k.png": "whole name",
    }  # fmt: skip
    why = {name.removeprefix(place): reason for name, reason in folder.rejected.items()}
    assert why.pop("c.png") == "has 2 different captions: `c.caption`, `c.txt`"
    assert why.pop("g.png") == "has a caption in `g.json` that has a list, wanted one text"
    assert all(
        reason.startswith("has no `.txt`, `.caption` or `.json` with a caption") for reason in why.values()
    )
    assert sorted(why) == ["a.2.png", "i.png"], "a text with a picture of its own is no other picture's"


def test_several_texts_of_one_key_are_rejected_with_their_names():
    texts = {"x.a.txt": "one", "x.b.txt": "two", "y.a.txt": "same", "y.b.txt": "same"}
    assert list(captioned(["x.png", "y.png", "z.png"], list(texts), texts.get)) == [
        ("x.png", None, "has 2 different captions: `x.a.txt`, `x.b.txt`"), ("y.png", "same", ""), ("z.png", None, "")
    ]  # fmt: skip


@pytest.mark.parametrize("shard", [False, True])
def test_a_caption_that_is_not_utf8_rejects_its_picture_alone(shard, tmp_path):
    root = CASES / "txt_latin_only"
    folder = PairFolder(packed(root, tmp_path / "s.tar") if shard else root)
    place = "s.tar/" if shard else ""
    assert [(pair.name, pair.caption) for pair in folder.pairs] == [
        (f"{place}0.png", "dog"),
        (f"{place}1.png", "dog"),
    ]
    assert folder.rejected == {f"{place}2.png": "has a caption in `2.txt` that is not UTF-8 text"}


@pytest.mark.parametrize(("kind", "found"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "XZ")])
@pytest.mark.parametrize("opened", [ImageFolder, PairFolder, VideoFolder])
def test_a_compressed_tar_is_named_as_such_by_every_reader(opened, kind, found, tmp_path):
    root = tmp_path / "set"
    pictures(root, "0.png")
    path = packed(root, tmp_path / f"s.tar.{kind}", mode=f"w:{kind}")
    with pytest.raises(InputError, match="compressed tar"):
        opened(tmp_path / "*.tar.*")
    with pytest.raises(InputError, match=f"{found} archive, wanted a folder or plain tar shards"):
        opened(path)
    (tmp_path / "alone").mkdir()
    shutil.copy(path, tmp_path / "alone")
    with pytest.raises(InputError, match="1 x is a compressed tar"):
        opened(tmp_path / "alone")
    renamed = path.rename(tmp_path / "s.tar")
    with pytest.raises(InputError, match=f"is an? {found} archive, wanted a plain tar"):
        opened(renamed)


# -- prompts ----------------------------------------------------------------------------------------------------------------


def test_a_prompt_ends_at_a_line_feed_and_nowhere_else(tmp_path, monkeypatch):
    assert _texts(None, CASES / "prompts" / "u2028.txt") == ["a dog surfing at the beach"]
    data = "one\u0085two\r\nthree\x0cfour\n# no\u2028prompt\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
    assert _texts(None, Path("-")) == ["one two", "three four"]
    (tmp_path / "p.txt").write_text("a\u2028b\nc\x0cd\n")
    clips = Folder(tmp_path, (tmp_path / "0.mp4", tmp_path / "1.mp4"), "videos", 2, (0, 1))
    assert prompts_of(clips, tmp_path / "p.txt") == ["a b", "c d"]
    (tmp_path / "p.txt").write_bytes("a\ncafé\n".encode("latin-1"))
    for read in (lambda path: _texts(None, path), lambda path: prompts_of(clips, path)):
        with pytest.raises(InputError, match=r"p\.txt:2` is not UTF-8 text"):
            read(tmp_path / "p.txt")


def test_a_table_of_prompts_is_read_by_the_same_rules_for_generate_and_for_eval(tmp_path):
    clips = Folder(tmp_path, (tmp_path / "0.mp4", tmp_path / "1.mp4"), "videos", 2, (0, 1))
    path = tmp_path / "p.csv"
    path.write_text('video;prompt\n0.mp4;"a dog\nsurfing"\n1.mp4;a cat\u2028asleep\n')
    wanted = ["a dog surfing", "a cat asleep"]
    assert prompts_of(clips, path) == wanted and _texts(None, path) == wanted
    for text, line in (("0.mp4,a, b", 2), ("0.mp4,x\n1.mp4", 3), ('0.mp4,"x', 2)):
        path.write_text(f"video,prompt\n{text}\n")
        for read in (lambda: _texts(None, path), lambda: prompts_of(clips, path)):
            with pytest.raises(InputError, match=rf"p\.csv:{line}` "):
                read()
    path.write_text("a dog surfing\n")
    with pytest.raises(InputError, match=r"p\.csv` has the columns `a dog surfing`, wanted one of `prompt`"):
        _texts(None, path)


def test_words_are_one_line_of_text():
    assert words(" a\u2028dog\x0c\tsurfs\x85") == "a dog surfs"
    assert words(None) == words(float("nan")) == "" and words(3) == "3"
    with pytest.raises(BadTextError, match="is not UTF-8"):
        words("\udce9")


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text("file,caption,Caption\n")
    with pytest.raises(InputError, match=r"c\.csv:1` has 2 columns `caption`"):
        Table(tmp_path / "c.csv")
