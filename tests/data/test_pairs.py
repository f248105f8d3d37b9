"""Still images with and without captions."""

import json
import sys

import numpy as np
import pytest

from mavcli.data.pairs import ImageFolder, PairFolder
from mavcli.errors import InputError
from mavcli.media.image import write_png


def picture(level: int) -> np.ndarray:
    return np.full((12, 20, 3), level, np.uint8)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "deep").mkdir()
    write_png(tmp_path / "a.png", picture(10))
    write_png(tmp_path / "deep" / "B.PNG", picture(200))
    return tmp_path


def test_images_are_found_at_any_depth_and_drawn_at_the_asked_size(photos):
    folder = ImageFolder(photos)
    assert folder.used == "used 2 of 2 images"
    rng = np.random.default_rng(0)
    levels = {int(folder.draw(rng, size=8).mean()) for _ in range(20)}
    assert levels == {10, 200} and folder.draw(rng, size=8).shape == (8, 8, 3)


def test_drawing_is_a_function_of_the_generator(photos):
    draws = [[int(ImageFolder(photos).draw(rng, size=4).mean()) for _ in range(8)]
             for rng in (np.random.default_rng(3), np.random.default_rng(3))]  # fmt: skip
    assert draws[0] == draws[1]


def test_unusable_images_are_rejected_with_reasons(photos):
    (photos / "empty.png").write_bytes(b"")
    (photos / "page.jpg").write_text("<html>404</html>")
    folder = ImageFolder(photos)
    assert folder.used.startswith("used 2 of 4 images")
    assert folder.rejected["empty.png"].startswith("is an empty file")
    assert folder.rejected["page.jpg"].startswith("is an HTML page")


def test_an_image_that_is_cut_off_is_never_drawn(photos):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write_png(photos / "cut.png", noise)
    (photos / "cut.png").write_bytes((photos / "cut.png").read_bytes()[:3000])
    folder, rng = ImageFolder(photos), np.random.default_rng(0)
    assert len(folder) == 2
    assert {int(folder.draw(rng, size=4).mean()) for _ in range(30)} == {10, 200}
    assert folder.rejected["cut.png"].startswith("is a damaged image")


@pytest.mark.parametrize("make", [ImageFolder, PairFolder])
def test_a_folder_with_nothing_usable_is_exit_4(make, tmp_path):
    with pytest.raises(InputError, match="holds no usable image") as raised:
        make(tmp_path)
    assert raised.value.exit_code == 4


def test_captions_beside_the_images(photos):
    (photos / "a.txt").write_text("  a dark\n field ")
    (photos / "deep" / "B.txt").write_text(" \n")
    write_png(photos / "c.png", picture(3))
    folder = PairFolder(photos)
    assert [(pair.name, pair.caption) for pair in folder.pairs] == [("a.png", "a dark field")]
    assert folder.layout == "captions from a text beside each image"
    assert folder.rejected == {
        "deep/B.PNG": "has an empty caption",
        "c.png": "has no `.txt`, `.caption` or `.json` with a caption beside it",
    }
    drawn, caption = folder.draw(np.random.default_rng(0), size=8)
    assert caption == "a dark field" and drawn.shape == (8, 8, 3) and drawn.mean() == 10


ROWS = [("a.png", "a dark field"), ("deep/B.PNG", "snow, \"bright\" ü"), ("a.png", "another name for it"),
        ("none.png", "gone"), ("a.png", " ")]  # fmt: skip


@pytest.mark.parametrize("columns", [("file", "caption"), ("image", "text"), ("path", "caption")])
@pytest.mark.parametrize("kind", ["captions.csv", "meta.jsonl"])
def test_captions_in_a_table(kind, columns, photos):
    if kind.endswith("csv"):
        lines = [",".join(columns)] + [
            f'{file},"{caption.replace(chr(34), chr(34) * 2)}"' for file, caption in ROWS
        ]
    else:
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in ROWS]
    (photos / kind).write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = PairFolder(photos)
    assert folder.layout == f"captions from `{kind}`"
    assert [(pair.name, pair.caption) for pair in folder.pairs] == [
        ("a.png", "a dark field"), ("deep/B.PNG", "snow, \"bright\" ü"), ("a.png", "another name for it")]  # fmt: skip
    assert sorted(folder.rejected.values()) == ["has an empty caption", "names a file that does not exist"]
    assert folder.used == f"used 3 of 5 pairs (2 rejected: mav data check {photos}), captions from `{kind}`"


def test_tables_of_other_things_are_left_alone(photos):
    (photos / "prices.csv").write_text("name,price\na,3\n")
    (photos / "log.jsonl").write_text('{"step": 1}\n')
    (photos / "a.txt").write_text("a dark field")
    assert PairFolder(photos).layout == "captions from a text beside each image"


def test_a_broken_table_is_named_with_its_line(photos):
    (photos / "meta.jsonl").write_text('{"file": "a.png", "caption": "x"}\n{oops\n')
    with pytest.raises(InputError, match=r"meta\.jsonl:2` is not JSON"):
        PairFolder(photos)


def test_the_real_photos_all_have_captions(shared_data):
    folder = PairFolder(shared_data / "photos")
    assert folder.used == "used 42 of 42 pairs, captions from `captions.csv`"


def parquet(path, columns: dict) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as tables

    tables.write_table(pyarrow.table(columns), path, row_group_size=2)


def test_captions_in_a_parquet_table_of_file_names(photos):
    parquet(
        photos / "meta.parquet", {"file_name": [row[0] for row in ROWS], "text": [row[1] for row in ROWS]}
    )
    folder = PairFolder(photos)
    assert [(pair.name, pair.caption) for pair in folder.pairs] == ROWS[:3]
    assert folder.rejected == {"meta.parquet:3": "names a file that does not exist",
                               "meta.parquet:4": "has an empty caption"}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_images_inside_a_parquet_table_are_read_in_place(photos, nested):
    images = [(photos / name).read_bytes() for name in ("a.png", "deep/B.PNG")] + [b"no picture"]
    column = [{"bytes": data, "path": "../../etc/passwd"} for data in images] if nested else images
    parquet(photos / "t.parquet", {"image": column, "caption": ["dark", "bright", "broken"]})
    folder = PairFolder(photos)
    assert [(pair.name, pair.caption) for pair in folder.pairs] == [
        ("t.parquet:0", "dark"),
        ("t.parquet:1", "bright"),
    ]
    assert list(folder.rejected) == ["t.parquet:2"]
    rng = np.random.default_rng(0)
    drawn = {(int(image.mean()), words) for image, words in (folder.draw(rng, size=4) for _ in range(20))}
    assert drawn == {(10, "dark"), (200, "bright")}


def test_a_parquet_table_without_pyarrow_names_the_extra(photos, monkeypatch):
    (photos / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="needs the package pyarrow") as raised:
        PairFolder(photos)
    assert raised.value.hint == "pip install 'mavcli[parquet]'"
