"""Labels that come as a table beside the images, as labelling tools export them: CSV or Parquet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pandas as pd
import pyarrow as pa

from tasks.intake.sources import SourceFile
from validation.errors import UsageError


def by_label(files: Sequence[SourceFile], table: Path, image: str, label: str) -> list[SourceFile]:
    """Return the files as if each were in a folder named after its label in ``table``.

    ``image`` is the column of the file: its path in the source, its name, or its name without the ending, whichever is
    of one file only. ``label`` is that of the label. Files without a label, and those with two, are left out by name.

    Raises:
        UsageError: when the table cannot be read, has no such columns, or labels none of the files.
    """
    labels: defaultdict[str, set[str]] = defaultdict(set)
    names = _names([file.path for file in files])
    rows = _read(table, image, label)
    for name, value in rows:
        labels[names.get(name) or names.get(PurePosixPath(name).name) or ""].add(value)
    if not labels.keys() - {""}:
        first = f"the first row names {rows[0][0]!r}" if rows else "it has no rows"
        raise UsageError(f"{table} labels none of the {len(files):,} files: {first}", f"is {image!r} the right column?")
    return [_placed(file, sorted(labels.get(file.path, ()))) for file in files]


def _placed(file: SourceFile, labels: list[str]) -> SourceFile:
    problem = "two labels in the table" if len(labels) > 1 else "" if labels and labels[0] else "no label in the table"
    folder = labels[0].replace("/", " ") if labels else ""
    return replace(file, path=file.path if problem else f"{folder}/{file.path}", problem=file.problem or problem)


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Return the file of every name that is of one file only."""
    of: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths:
        for name in (path, PurePosixPath(path).name, PurePosixPath(path).stem):
            of[name].add(path)
    return {name: min(those) for name, those in of.items() if len(those) == 1} | {path: path for path in paths}


def _read(table: Path, image: str, label: str) -> list[tuple[str, str]]:
    try:
        if table.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(table).astype(str)
        else:
            frame = pd.read_csv(
                table, dtype=str, keep_default_na=False, encoding="utf-8-sig", sep=None, engine="python"
            )
    except (OSError, ValueError, pa.ArrowException, pd.errors.ParserError) as error:
        raise UsageError(f"cannot read {table}: {error}", "expected a CSV with a header, or Parquet") from error
    if lacking := [name for name in (image, label) if name not in frame]:
        raise UsageError(
            f"{table} has no column {' and no column '.join(map(repr, lacking))}; it has {', '.join(map(repr, frame))}",
            "name those of the file and of the label: --columns FILE,LABEL",
        )
    paths = frame[image].str.strip().str.replace("\\", "/").str.removeprefix("./")
    return list(zip(paths, frame[label].str.strip(), strict=True))
