"""Tables of media and their texts, all read by the same rules: CSV (`,`, `;` or tabs), JSONL and Parquet.

A row of CSV and JSONL ends at LF or CR LF and nowhere else; a row that cannot be used says why and ends nothing. In Parquet
the pictures themselves may stand in the table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mavcli.data.captions import CAPTION_COLUMNS, BadTextError, not_utf8, words
from mavcli.data.places import Place
from mavcli.errors import InputError, counted
from mavcli.media.passing import not_read

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of tables."""

FILE_COLUMNS = ("file", "image", "path", "file_name", "filename")

_DELIMITERS = ",;\t"


class Row(NamedTuple):
    """One row. `line` counts from 1 as an editor does; in Parquet it is the row, from 0."""

    line: int
    key: str | Place
    """What the row is about: a name, or the bytes in the table."""
    text: str
    """White space folded; empty where the row says nothing."""
    fault: str | None = None
    """Why the row cannot be used, in words that go on after its place."""


class Table:
    """A table with a column that names things and one of texts; `fits` says whether it has both.

    Names of columns count without case, the first of `keys` and of `texts` that is there is taken; without `keys` the
    texts alone are wanted. Raises InputError for a file that is no table, here and while rows are read.
    """

    def __init__(self, path: Path, *, keys: Sequence[str] = FILE_COLUMNS,
                 texts: Sequence[str] = CAPTION_COLUMNS) -> None:  # fmt: skip
        self.path = path
        self._keys, self._texts = keys, texts
        self._kind = path.suffix.lower()
        self._fault: str | None = None  # of the header
        self.columns: tuple[str, ...] = self._head()
        """Lower case."""

    @property
    def fits(self) -> bool:
        return self._named(self._texts, self.columns) is not None and (
            not self._keys or self._named(self._keys, self.columns) is not None
        )

    def rows(self) -> Iterator[Row]:
        """Every row that is not blank, of a table that fits."""
        if self._kind == ".parquet":
            return self._parquet_rows()
        return self._json_rows() if self._kind == ".jsonl" else self._csv_rows()

    def misfit(self) -> InputError:
        """The error for a table that does not fit, where one is wanted."""
        if self._fault is not None:
            return InputError(
                f"`{self.path}:1` {self._fault}", hint="save it again as CSV, its lines ended by LF"
            )
        wanted = " and ".join(
            f"one of {', '.join(f'`{name}`' for name in names)}"
            for names in (self._keys, self._texts)
            if names
        )
        return InputError(
            f"`{self.path}` has the columns {', '.join(f'`{name}`' for name in self.columns) or 'none'}, "
            f"wanted {wanted}"
        )

    def _head(self) -> tuple[str, ...]:
        if self._kind == ".parquet":
            return tuple(name.lower() for name in _open(self.path).schema_arrow.names)
        if self._kind == ".jsonl":
            first = next(self._records(), None)
            return () if first is None else tuple(first[1])
        first_line = next(self._csv_lines(), None)
        if first_line is None:
            return ()
        if isinstance(first_line[1], str):
            self._fault = first_line[1]
            return ()
        columns = tuple(cell.strip().lower() for cell in first_line[1])
        for names in (self._keys, self._texts):
            name = self._named(names, columns)
            if name is not None and columns.count(name) > 1:
                raise InputError(f"`{self.path}:{first_line[0]}` has {columns.count(name)} columns `{name}`")
        return columns

    @staticmethod
    def _named(names: Sequence[str], columns: Sequence[str]) -> str | None:
        return next((name for name in names if name in columns), None)

    def _row(self, line: int, cells: dict[str, Any]) -> Row:
        """The row of some cells; what they hold may be no text."""
        key = next((cells[name] for name in self._keys if cells.get(name) not in (None, "")), "")
        if not isinstance(key, str):
            return Row(line, "", "", "has a name that is no text")
        try:
            text = words(next((cells[name] for name in self._texts if cells.get(name) is not None), ""))
        except BadTextError as error:
            return Row(line, key.strip(), "", f"has a caption that {error}")
        return Row(line, key.strip(), text)

    def _csv_rows(self) -> Iterator[Row]:
        records = self._csv_lines()
        next(records)
        for line, cells in records:
            if isinstance(cells, str):
                yield Row(line, "", "", cells)
            elif len(cells) != len(self.columns):
                if any(cell.strip() for cell in cells):
                    yield Row(line, "", "", f"has {counted(len(cells), 'column')}, its header {len(self.columns)}: a text with "
                              "the delimiter in it wants quotes")  # fmt: skip
            else:
                yield self._row(line, dict(zip(self.columns, cells, strict=True)))

    def _csv_lines(self) -> Iterator[tuple[int, list[str] | str]]:
        """(line where it begins, cells) of every record, the header first; of a faulty one what is wrong with it."""
        lines = self._lines()
        first = next(lines, (1, ""))[1]
        # the delimiter that divides the header most often: `csv.Sniffer` would take a space, too, for one
        delimiter = max(_DELIMITERS, key=first.count)
        reader = csv.reader(chain([first], (text for _, text in lines)), delimiter=delimiter, strict=True)
        while True:
            begin = reader.line_num + 1
            try:
                yield begin, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                what, here = str(error), reader.line_num == begin
                if "expected after" in what and here:
                    yield begin, "has text behind a closing quote; a quote inside a text is written twice"
                elif "new-line character" in what and here:
                    yield begin, "has a carriage return outside of quotes"
                elif "expected after" in what:
                    raise InputError(
                        f"`{self.path}:{begin}` opens a quote that ends in line {reader.line_num}, in the middle of "
                        "a text: a quote is missing or too much",
                        hint="a text with a quote in it stands in quotes, and the quote is written twice",
                    ) from error
                elif "limit" in what and here:
                    raise InputError(f"`{self.path}:{begin}` has a {what}") from error
                else:
                    end = f"not closed before line {reader.line_num}" if "limit" in what else "never closed"
                    raise InputError(
                        f"`{self.path}:{begin}` opens a quote that is {end} ({what})",
                        hint="a text with a quote in it stands in quotes, and the quote is written twice",
                    ) from error

    def _json_rows(self) -> Iterator[Row]:
        for line, record in self._records():
            if self._named(self._texts, tuple(record)) is None or (
                self._keys and self._named(self._keys, tuple(record)) is None
            ):
                yield Row(line, "", "", "lacks a file or a caption")
            else:
                yield self._row(line, record)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for line, text in self._lines():
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"`{self.path}:{line}` is not JSON: {error}", hint="one JSON object a line"
                ) from error
            if not isinstance(record, dict):
                raise InputError(f"`{self.path}:{line}` is not a JSON object", hint="one JSON object a line")
            yield line, {key.lower(): value for key, value in record.items()}

    def _lines(self) -> Iterator[tuple[int, str]]:
        """(number from 1, line with its end); a byte that is not UTF-8 becomes a surrogate, which `words` refuses."""
        try:
            with open(self.path, "rb") as file:
                for number, raw in enumerate(file, 1):  # binary lines end at LF alone
                    if number == 1:
                        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                            raise not_utf8(str(self.path), number, raw)
                        raw = raw.removeprefix(b"\xef\xbb\xbf")
                    yield number, raw.decode("utf-8", "surrogateescape")
        except OSError as error:
            not_read(str(self.path), error)

    def _parquet_rows(self) -> Iterator[Row]:
        """An image column holds names, bytes, or `{"bytes", "path"}` as Hugging Face's data sets have it."""
        table = _open(self.path)
        names = {name.lower(): name for name in table.schema_arrow.names}
        file, text = self._named(self._keys, self.columns), self._named(self._texts, self.columns)
        assert text is not None
        inside = file is not None and "binary" in str(table.schema_arrow.field(names[file]).type)
        row = 0
        for group in range(table.num_row_groups):
            texts = _column(self.path, table, group, names[text])
            # the bytes themselves are read when they are drawn
            known = (
                _column(self.path, table, group, names[file]) if file and not inside else [None] * len(texts)
            )
            for said, name in zip(texts, known, strict=True):
                found = self._row(row, {text: said} | ({file: name} if file else {}))
                if inside and file:
                    place = Place(f"{self.path.name}:{row}", str(self.path), cell=(group, names[file], row))
                    found = found._replace(key=place)
                yield found
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
    except MemoryError:
        raise
    except Exception as error:  # pyarrow has exceptions of its own for each kind of damage
        _refuse_passing(path, error)
        raise InputError(
            f"`{path}` is not a Parquet table that can be read: {_words(error)}", hint="copy it again"
        ) from error


def _column(path: Path, table: Any, group: int, column: str, *, whole: bool = False) -> Any:
    try:
        read = table.read_row_group(group, columns=[column]).column(0).combine_chunks()
    except MemoryError:
        raise
    except Exception as error:
        _refuse_passing(path, error)
        raise InputError(
            f"`{path}` is damaged in row group {group}: {_words(error)}", hint="copy it again"
        ) from error
    return read if whole else read.to_pylist()


def _refuse_passing(path: Path, error: Exception) -> None:
    if isinstance(error, OSError) and error.errno:  # pyarrow's own have no number
        not_read(str(path), error)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
