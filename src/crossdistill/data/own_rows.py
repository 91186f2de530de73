"""Settings that a table and a folder share: rows that cannot be read, splits, folds."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from crossdistill.data.cache import CacheEntry
from crossdistill.data.config import DataConfig
from crossdistill.data.own_splits import few_rows, of_column, of_fold, of_ids
from crossdistill.data.split import SPLITS, default_split
from crossdistill.data.table_cells import OnBad
from crossdistill.data.table_file import Table
from crossdistill.errors import DataError

TINY_ROWS = 240


class OwnRowsConfig(DataConfig):
    """Settings of a user's rows, of a table or a folder."""

    of_files: ClassVar[bool] = True

    path: Path | None = Field(default=None, description="the table, or the folder")
    on_bad: OnBad = Field(default="refuse", description="skip: leave out rows whose files cannot be read")
    fractions: tuple[float, float] = Field(default=(0.6, 0.2), description="of training and validation; rest: test")
    folds: int | None = Field(
        default=None, ge=3, description="draw so many folds; `fold` is the test, the next validates"
    )
    fold: int = Field(default=0, ge=0, description="which of the folds is the test")
    rows: int | None = Field(default=None, ge=3, description="at most so many rows, of all classes alike; null: all")

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """A run that is resumed from another folder reads the same data."""
        return None if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _consistent(self) -> "OwnRowsConfig":
        if not (0 < self.fractions[0] < 1 and 0 < self.fractions[1] < 1 and sum(self.fractions) < 1):
            raise ValueError(f"fractions={list(self.fractions)}: two shares above 0 that leave some rows for the test")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold={self.fold}: there are folds 0 to {self.folds - 1}")
        return self

    def cached(self) -> CacheEntry | None:
        """None: rows are read from their files."""
        return None

    def tiny(self) -> "OwnRowsConfig":
        """At most a few hundred of the rows."""
        return self.model_copy(update={"rows": min(self.rows or TINY_ROWS, TINY_ROWS)})

    @abstractmethod
    def about(self) -> str:
        """What `path` is, for the error where it is not set."""

    def source(self) -> Path:
        """The path.

        Raises:
            DataError: it is not set.
        """
        if self.path is None:
            raise DataError(f"data {self.name!r}: data.path is not set; give {self.about()}: --set data.path=PATH")
        return self.path

    def limited(self, table: Table, targets: tuple[str, ...], split: str | None) -> Table:
        """The table, with at most `rows` rows."""
        if self.rows is None or len(table) <= self.rows:
            return table
        columns = [list(map(str, table.columns[name])) for name in (*targets, split) if name is not None]
        strata = list(zip(*columns, strict=True)) if columns else [()] * len(table)
        return table.rows(few_rows(strata, self.rows, self.seed))

    def drawn(
        self,
        targets: Tensor,
        kind: str,
        groups: Mapping[str, Tensor],
        table: Table,
        split: str | None,
        ids: tuple[str, Mapping[Any, tuple[str, ...]]] | None = None,
    ) -> tuple[dict[str, Tensor], str]:
        """The splits, and a sentence about them: folds, a column, lists of ids, or drawn by strata such as classes.

        Raises:
            DataError: the rows cannot be split so.
        """
        if self.folds is not None:
            return of_fold(targets, groups, self.folds, self.fold, self.seed, kind)
        if ids is not None:
            column, lists = ids
            return of_ids(table.columns[column], lists), f"splits are lists of ids of column {column!r}"
        if split is not None:
            return of_column(table, split, targets, groups, self.seed, kind)
        if len(table) < len(SPLITS):
            raise DataError(f"{len(table)} rows are too few for training, validation and test")
        return default_split(self.name, targets, groups, self.seed, self.fractions, kind)
