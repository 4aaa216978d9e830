"""Rows of a table, declared once: a frozen dataclass whose fields are the columns.

@dataclass(frozen=True, kw_only=True)
class Row:
    name: str = column(pa.string())

SCHEMA = schema_of(Row)        Arrow schema, columns in the order of the fields
rows_of(Row, table)            table -> rows; each row's `__post_init__` validates it
to_table(Row, rows)            rows -> table
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

Row = TypeVar("Row")


def column(kind: pa.DataType, *, nullable: bool = False, **marks: bool) -> Any:
    """A field that is a column.

    Args:
        kind: its Arrow type; lists are NumPy arrays in a row.
        nullable: whether Arrow's schema allows nulls.
        marks: properties that `marked` asks for.
    """
    return field(metadata={"kind": kind, "nullable": nullable, **marks})


def schema_of(row: type) -> pa.Schema:
    """The Arrow schema of a row's dataclass."""
    return pa.schema(
        [
            pa.field(found.name, found.metadata["kind"], nullable=found.metadata["nullable"])
            for found in fields(row)
        ]
    )


def marked(row: type, mark: str) -> tuple[str, ...]:
    """Names of the columns with a mark, in order."""
    return tuple(found.name for found in fields(row) if found.metadata.get(mark))


def rows_of(row: type[Row], table: pa.Table) -> list[Row]:
    """The rows of a table that has at least the columns of `row`; arrays are views of its memory.

    Raises:
        KeyError: a column is missing.
        ValueError: the values of a row can't be.
    """
    names = schema_of(row).names
    columns = {name: _values(table[name]) for name in names}
    return [row(**{name: values[k] for name, values in columns.items()}) for k in range(len(table))]


def _values(column: pa.ChunkedArray) -> list[Any]:
    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    found: list[Any] = []
    for chunk in column.chunks:
        bounds = chunk.offsets.to_numpy()
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        found += np.split(values, bounds[1:-1] - bounds[0]) if len(chunk) else []
    return found


def to_table(row: type[Row], rows: Sequence[Row]) -> pa.Table:
    """The inverse of `rows_of`."""
    schema = schema_of(row)
    columns = [
        pa.array([getattr(one, name) for one in rows], schema.field(name).type)
        for name in schema.names
    ]
    return pa.Table.from_arrays(columns, schema=schema)
