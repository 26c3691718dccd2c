"""Raw rows on disk: a folder of Parquet files, one for each part of the work. What is there is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tailbound.lab import folder, seals
from tailbound.lab.errors import InputError, need
from tailbound.lab.progress import Progress

Columns = Mapping[str, np.ndarray]
"""Columns of one length."""


SETTINGS = "settings.json"


class Rows:
    """The raw rows of one job: `<folder>/<kind>/<part>.parquet`, and what was asked for in `<folder>/settings.json`.

    Files are written whole or not at all, so that an interrupted run goes on at the first part that is missing. Each
    says in its metadata which job and which part it is, so that a file put there by hand is not taken for another.
    """

    def __init__(
        self, place: Path, settings: Mapping[str, Any], notes: Mapping[str, Any] | None = None, fresh: bool = False
    ) -> None:
        """Open or begin a folder.

        Args:
            place: the folder.
            settings: everything that the rows must not mix, as JSON has it.
            notes: what else is worth knowing of them; those of the run that began the folder are kept.
            fresh: forget rows that are there.

        Raises:
            InputError: no pyarrow, a folder that cannot be written to, or rows of other settings in it.
        """
        need("pyarrow", "rows are Parquet files", "report")
        self.place = place
        file = place / SETTINGS
        if fresh and file.exists():
            shutil.rmtree(place)
        folder.prepare(place, "--out")
        asked = json.loads(json.dumps({"settings": settings, "notes": notes or {}}))
        if file.exists():
            found = _settings(file)
            self._check(found["settings"], asked["settings"])
            asked["notes"] = found["notes"]
        else:
            whole(file, lambda path: path.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8"))
        self.settings: dict[str, Any] = asked["settings"]
        self._job = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        self.notes: dict[str, Any] = asked["notes"]

    def _check(self, found: dict[str, Any], asked: dict[str, Any]) -> None:
        differ = [name for name in asked.keys() | found.keys() if asked.get(name) != found.get(name)]
        if differ:
            there = ", ".join(f"{name} {found.get(name)!r}" for name in sorted(differ))
            wanted = ", ".join(f"{name} {asked.get(name)!r}" for name in sorted(differ))
            raise InputError(
                f"{self.place} holds rows of a run with {there}, and this one has {wanted}; name another folder by "
                "--out, or give --fresh to begin again"
            )

    @property
    def complete(self) -> bool:
        """Whether `finish` was called, in this run or an earlier one: every part is there."""
        return (self.place / "complete").exists()

    def finish(self) -> None:
        """Note that every part is there."""
        (self.place / "complete").touch()

    def has(self, kind: str, part: str) -> bool:
        """Whether a part is done.

        A file that cannot be read whole, or is of another job or another part, counts as missing, and is written anew.
        """
        file = self.file(kind, part)
        if not file.is_file():
            return False
        try:
            self._table(file)
        except InputError:
            return False
        return True

    def add(self, kind: str, part: str, columns: Columns, notes: Mapping[str, str] | None = None) -> None:
        """Write a part.

        Args:
            notes: what else its metadata say, for who looks into the file.

        Raises:
            InputError: it cannot be written.
        """
        file = self.file(kind, part)
        try:
            file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror or error}") from error
        write_table(file, columns, self._label(file) | dict(notes or {}))

    def read(self, kind: str, parts: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Parts of a kind under one another: those named, or all in the order of their names.

        Raises:
            InputError: there are none, or they cannot be read, or are of another job.
        """
        import pyarrow

        if parts is None:
            files = sorted((self.place / kind).glob("*.parquet"))
        else:
            files = [self.file(kind, part) for part in parts]
        if not files:
            raise InputError(f"{self.place / kind} holds no rows; run the part again with --fresh")
        table = pyarrow.concat_tables([self._table(file) for file in files], promote_options="permissive")
        return {name: table[name].to_numpy() for name in table.column_names}

    def read_part(self, kind: str, part: str) -> dict[str, np.ndarray]:
        """One part.

        Raises:
            InputError: it cannot be read.
        """
        table = self._table(self.file(kind, part))
        return {name: table[name].to_numpy() for name in table.column_names}

    def notes_of(self, kind: str, part: str) -> dict[str, str]:
        """What the metadata of a part say.

        Raises:
            InputError: it cannot be read.
        """
        from pyarrow import parquet

        file = self.file(kind, part)
        try:
            found = parquet.read_schema(file).metadata or {}
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the rows in {file}: {error}; give --fresh") from error
        return {name.decode(): value.decode() for name, value in found.items()}

    def file(self, kind: str, part: str) -> Path:
        """Where a part is, or will be."""
        return self.place / kind / f"{part}.parquet"

    def _label(self, file: Path) -> dict[str, str]:
        return {"tailbound.job": self._job, "tailbound.part": f"{file.parent.name}/{file.stem}"}

    def _table(self, file: Path) -> Any:
        table = _table(file)
        found = table.schema.metadata or {}
        if any(found.get(name.encode()) != value.encode() for name, value in self._label(file).items()):
            raise InputError(f"{file} is not of this run, or under another name than it was given; remove it")
        return table


class Job(NamedTuple):
    """A piece of work with rows of its own: its folder's name, what the rows depend on, what else to say of them."""

    name: str
    settings: dict[str, Any]
    notes: dict[str, Any]
    work: Callable[[Rows, Progress], None]


def stack(parts: Sequence[Columns]) -> dict[str, np.ndarray]:
    """Columns of several pieces under one another; a column that a piece lacks is NaN there."""
    names = dict.fromkeys(name for part in parts for name in part)
    sizes = [len(next(iter(part.values()))) for part in parts]
    return {
        name: np.concatenate([part.get(name, np.full(size, np.nan)) for part, size in zip(parts, sizes, strict=True)])
        for name in names
    }


def chosen(columns: Columns, **values: Any) -> dict[str, np.ndarray]:
    """The rows in which the named columns have these values."""
    mask = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for name, value in values.items():
        mask &= columns[name] == value
    return {name: column[mask] for name, column in columns.items()}


def write_table(file: Path, columns: Columns, metadata: Mapping[str, str]) -> None:
    """Write columns as a Parquet file with checksums, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: np.ascontiguousarray(column) for name, column in columns.items()})
    table = table.replace_schema_metadata({**metadata, seals.SEAL: seals.of_table(table)})
    whole(file, lambda path: parquet.write_table(table, path, compression="zstd", write_page_checksum=True))


def whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name first, so that it is there whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        write(unfinished)
        os.replace(unfinished, file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(found, dict) and found.keys() >= {"settings", "notes"}):
            raise ValueError("no settings in it")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {error}; remove it, or name another folder") from error
    return found


def _table(file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file, page_checksum_verification=True)
        if (table.schema.metadata or {}).get(seals.SEAL.encode()) != seals.of_table(table).encode():
            raise ValueError(f"its {seals.SEAL} does not fit")
        return table
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read the rows in {file}: {error}; give --fresh") from error
