"""Parquet tables of images with captions: file names, or the bytes of the images in the table itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from mavcli.data.places import Place
from mavcli.errors import InputError

FILE_COLUMNS = ("file", "image", "path", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "text")


def parquet_rows(path: Path) -> Iterator[tuple[int, str | Place, str]]:
    """(row, file name or place of the bytes, caption); nothing when the columns are others.

    An image column holds names, bytes, or `{"bytes", "path"}` as Hugging Face's data sets have it. Raises InputError
    when the table is damaged or pyarrow is not installed.
    """
    table = _open(path)
    names = {name.lower(): name for name in table.schema_arrow.names}
    file = next((names[name] for name in FILE_COLUMNS if name in names), None)
    caption = next((names[name] for name in CAPTION_COLUMNS if name in names), None)
    if file is None or caption is None:
        return
    kind = str(table.schema_arrow.field(file).type)
    inside = "binary" in kind
    row = 0
    for group in range(table.num_row_groups):
        # the bytes themselves are read when they are drawn
        words = _column(path, table, group, caption)
        files = [None] * len(words) if inside else _column(path, table, group, file)
        for text, name in zip(words, files, strict=True):
            words_in = " ".join(str(text or "").split())
            yield row, Place(f"{path.name}:{row}", str(path), cell=(group, file, row)) if inside else str(name or "").strip(), words_in  # fmt: skip
            row += 1


def read_cell(path: str, group: int, column: str, row: int) -> bytes:
    """The bytes in one cell, `row` counted from the table's beginning. Raises InputError."""
    first, values = _group(path, group, column)
    value: Any = values[row - first].as_py() if 0 <= row - first < len(values) else None
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise InputError(f"`{path}:{row}` holds no bytes in column `{column}`")
    return value


@lru_cache(maxsize=4)  # row groups are the smallest thing that Parquet can read
def _group(path: str, group: int, column: str) -> tuple[int, Any]:
    table = _open(Path(path))
    if group >= table.num_row_groups:
        raise InputError(f"`{path}` has {table.num_row_groups} row groups, wanted number {group}")
    first = sum(table.metadata.row_group(i).num_rows for i in range(group))
    return first, _column(Path(path), table, group, column, whole=True)


def _open(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(
            f"`{path}` is a Parquet table, which needs the package pyarrow, and that is not installed",
            hint="pip install 'mavcli[parquet]'",
        ) from error
    try:
        return ParquetFile(path)
    except Exception as error:  # pyarrow has exceptions of its own for each kind of damage
        raise InputError(
            f"`{path}` is not a Parquet table that can be read: {_words(error)}", hint="copy it again"
        ) from error


def _column(path: Path, table: Any, group: int, column: str, *, whole: bool = False) -> Any:
    try:
        read = table.read_row_group(group, columns=[column]).column(0).combine_chunks()
    except Exception as error:
        raise InputError(
            f"`{path}` is damaged in row group {group}: {_words(error)}", hint="copy it again"
        ) from error
    return read if whole else read.to_pylist()


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
