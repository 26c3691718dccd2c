"""A ledger as Parquet: one file of certificates, one of heads, both with the schema's version in their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tailbound.hf.rows import PLACE
from tailbound.hf.summary import HeadSummary
from tailbound.hf.tally import MEASURES, RANK_ERROR
from tailbound.result import Status

if TYPE_CHECKING:
    import pyarrow

SCHEMA = "tailbound.ledger/1"
COLUMNS = (*PLACE, "tv", "output_error", "kept", "visible")


def write(
    path: Path,
    rows: np.ndarray,
    heads: Iterable[HeadSummary],
    metadata: Mapping[str, Any],
    overwrite: bool,
) -> tuple[Path, Path]:
    """Write rows of dtype `ROW` to `path` and heads beside it, to `<stem>.heads.parquet`; see `Ledger.to_parquet`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("Parquet files are written by pyarrow: pip install 'tailbound[report]'") from error

    beside = path.with_name(f"{path.stem}.heads.parquet")
    if not overwrite:
        for place in (path, beside):
            if place.exists():
                raise FileExistsError(f"{place} exists; choose another path, or pass overwrite=True")
    names = pyarrow.array([status.name for status in Status])
    columns = {name: pyarrow.array(np.ascontiguousarray(rows[name])) for name in COLUMNS}
    status = pyarrow.array(rows["status"].astype(np.int8))
    columns["status"] = pyarrow.DictionaryArray.from_arrays(status, names)
    known: dict[str | bytes, str | bytes] = {
        "schema": SCHEMA,
        "tailbound": json.dumps({"schema": SCHEMA, "rank_error": RANK_ERROR, **metadata}),
    }
    tables = (pyarrow.table(columns), _heads(pyarrow, heads))
    for place, table in zip((path, beside), tables, strict=True):
        with place.open("wb" if overwrite else "xb") as file:
            parquet.write_table(table.replace_schema_metadata(known), file, compression="zstd")
    return path, beside


def _heads(arrow: Any, heads: Iterable[HeadSummary]) -> pyarrow.Table:
    fields = [("layer", arrow.int32()), ("head", arrow.int32()), ("certificates", arrow.int64())]
    fields += [(status.name.lower(), arrow.int64()) for status in Status]
    fields += [
        (f"{measure}_{name}", arrow.float64())
        for measure in MEASURES
        for name in ("min", "median", "p95", "max", "mean")
    ]
    lines = []
    for part in heads:
        line = [part.layer, part.head, part.certificates, *(part.statuses[status] for status in Status)]
        line += [value for measure in MEASURES for value in getattr(part, measure)]
        lines.append(dict(zip((name for name, _ in fields), line, strict=True)))
    return arrow.Table.from_pylist(lines, schema=arrow.schema(fields))
