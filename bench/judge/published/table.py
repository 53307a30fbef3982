"""Published measurements as columns, and the file that holds the committed ones.

The file is xz around one line of JSON (the columns' types and names, the sources, what was left out) and the arrays of
each table one after the other, little-endian, byte planes apart so that they pack well. Reading it needs only numpy.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import BadRequest, unknown
from bench.files import replacing

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

DATA = Path(__file__).parent / "data"
FILE = DATA / "aiconfigurator.xz"
DIGITS = 4
"""Significant digits of a time in the committed table."""

CODED = ("op", "part", "software", "version", "kernel", "stored", "activations", "cache", "routing", "source", "model")
"""Columns that hold codes of names."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows by column. A coded column holds small integers, and `names` says what they stand for."""

    columns: Mapping[str, Array]
    names: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, Any] = field(default_factory=dict)
    """The package behind the rows: name, version, sha256, licence."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many rows of the source are not here, by reason."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> Array:
        return self.columns[column]

    def text(self, column: str) -> Array:
        """The names of a coded column, one for each row."""
        return np.array(self.names[column], dtype=object)[self.columns[column]]

    def code(self, column: str, name: str) -> int:
        """The code of a name. Raises `BadRequest` for one that no row can have."""
        try:
            return self.names[column].index(name)
        except ValueError:
            raise unknown(column, name, self.names[column]) from None

    def take(self, which: Array) -> Table:
        """The rows of a mask or of an index."""
        columns = {name: values[which] for name, values in self.columns.items()}
        return Table(columns=columns, names=self.names, sources=self.sources, left_out=self.left_out)

    def where(self, **wanted: Any) -> Table:
        """The rows whose columns have these values; a sequence means any of them. Raises `BadRequest`."""
        keep = np.ones(len(self), dtype=bool)
        for column, value in wanted.items():
            if column not in self.columns:
                raise unknown("column", column, self.columns)
            values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            found = [self.code(column, v) if column in self.names else v for v in values]
            keep &= np.isin(self.columns[column], found)
        return self.take(np.flatnonzero(keep))

    def present(self, column: str) -> list[str]:
        """The names of a coded column that rows have, in the order of their codes."""
        return [self.names[column][code] for code in np.unique(self.columns[column])]

    def frame(self) -> pd.DataFrame:
        """A pandas frame, with names instead of codes."""
        import pandas as pd

        coded = {
            name: pd.Categorical.from_codes(values, list(self.names[name])) if name in self.names else values
            for name, values in self.columns.items()
        }
        return pd.DataFrame(coded)


def mixed(columns: Iterable[Array]) -> Array:
    """A 64-bit number for each row that depends on the values of these columns (SplitMix64)."""
    state: Any = np.uint64(0)
    for values in columns:
        state = state + np.uint64(0x9E3779B97F4A7C15) + np.asarray(values).astype(np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def joined(tables: Iterable[Table]) -> Table:
    """The rows of all tables. A column that a table lacks is 0 there; codes are renumbered."""
    parts = [table for table in tables if len(table)]
    names: dict[str, tuple[str, ...]] = {}
    for column in dict.fromkeys(c for t in parts for c in t.names):
        names[column] = tuple(sorted({n for t in parts if column in t.names for n in t.names[column]}))
    columns = {}
    for column in dict.fromkeys(c for t in parts for c in t.columns):
        pieces = []
        for table in parts:
            values = table.columns.get(column)
            if values is None:
                values = np.zeros(len(table), dtype=np.int32)
            elif column in names:
                order = {name: code for code, name in enumerate(names[column])}
                values = np.array([order[name] for name in table.names[column]], dtype=np.int32)[values]
            pieces.append(values)
        columns[column] = np.concatenate(pieces)
    left_out: dict[str, int] = {}
    for table in parts:
        for reason, count in table.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    return Table(columns=columns, names=names, left_out=left_out)


def save(path: Path, tables: Mapping[str, Table]) -> None:
    """Write tables into one file. The same rows give the same bytes."""
    header: dict[str, Any] = {}
    body = bytearray()
    for key, table in tables.items():
        kept = []
        for name, values in table.columns.items():
            for label, array in _stored(name, values):
                width = array.dtype.itemsize
                kept.append([label, array.dtype.str])
                body += array.view(np.uint8).reshape(-1, width).T.tobytes()
        header[key] = {
            "rows": len(table),
            "columns": kept,
            "names": {column: list(names) for column, names in table.names.items()},
            "sources": dict(table.sources),
            "left_out": dict(sorted(table.left_out.items())),
        }
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    packed = lzma.compress(text + bytes(body), format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    with replacing(path) as fresh:
        fresh.write_bytes(packed)


def _stored(name: str, values: Array) -> list[tuple[str, Array]]:
    """A column as it is stored: whole numbers in the smallest type; seconds as `DIGITS` digits and an exponent."""
    if values.dtype.kind == "f":
        digits, exponent = _digits(values)
        return [(f"{name} digits", digits.astype("<u2")), (f"{name} exponent", exponent.astype("|i1"))]
    largest = int(values.max(initial=0))
    kind = next(t for t in ("|u1", "<u2", "<u4", "<u8") if largest <= np.iinfo(t).max)
    return [(name, values.astype(kind))]


def _digits(values: Array) -> tuple[Array, Array]:
    exponent = np.floor(np.log10(values)).astype(np.int64) - DIGITS + 1
    return np.rint(values / 10.0**exponent).astype(np.int64), exponent


def rounded(values: Array) -> Array:
    """The values as they come back from the file."""
    digits, exponent = _digits(values)
    return digits * 10.0 ** exponent.astype(np.float64)


def read(path: Path) -> dict[str, Table]:
    """The tables of a file. Raises `BadRequest` for a file that is damaged."""
    try:
        text, body = lzma.decompress(path.read_bytes()).split(b"\n", 1)
        header = json.loads(text)
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise BadRequest(f"{path} holds no table of published measurements: {error}") from None
    tables, start = {}, 0
    for key, said in header.items():
        rows, found = said["rows"], {}
        for label, kind in said["columns"]:
            width = np.dtype(kind).itemsize
            planes = np.frombuffer(body, np.uint8, rows * width, start).reshape(width, rows)
            found[label] = np.ascontiguousarray(planes.T).view(kind).reshape(rows)
            start += rows * width
        columns = {}
        for label, array in found.items():
            name, _, role = label.partition(" ")
            if not role:
                columns[name] = array.astype(np.int64) if array.dtype.itemsize == 8 else array.astype(np.int32)
            elif role == "digits":
                columns[name] = array * 10.0 ** found[f"{name} exponent"].astype(np.float64)
        names = {column: tuple(listed) for column, listed in said["names"].items()}
        tables[key] = Table(columns=columns, names=names, sources=said["sources"], left_out=said["left_out"])
    return tables


@cache
def _committed() -> dict[str, Table]:
    return read(FILE)


def load(kind: str = "kernels") -> Table:
    """The committed table: `kernels`, or `servers`."""
    tables = _committed()
    if kind not in tables:
        raise unknown("table", kind, tables)
    return tables[kind]
