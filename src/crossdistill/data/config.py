"""DataConfig: the settings of a recipe's data, and loading them."""

import abc
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from crossdistill.data.augmentation import Variations
from crossdistill.data.cache import CacheEntry
from crossdistill.data.content import OnProgress, quiet
from crossdistill.data.dataset import Dataset
from crossdistill.data.file_source import FileSource
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.data.kept import DEFAULT_MB
from crossdistill.data.workers import Workers
from crossdistill.errors import DataError

ROOT_VARIABLE = "CROSSDISTILL_DATA"


class DataConfig(BaseModel, abc.ABC):
    """Settings of one data set; each data set has a subclass with a literal `name`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    of_files: ClassVar[bool] = False
    """Whether the data are a user's own files, which may change between two starts."""

    name: str
    root: Path | None = Field(
        default=None, description="folder of downloaded data; else the variable CROSSDISTILL_DATA"
    )
    labelled: float = Field(
        default=1.0, gt=0, le=1, description="fraction of the student's training labels that it keeps"
    )
    seed: int = Field(default=0, ge=0, description="draws splits, pairs and noise")
    label_seed: int | None = Field(
        default=None, ge=0, description="draws the labels that are kept; by default as `seed`"
    )
    workers: int | None = Field(
        default=None, ge=0, exclude=True, description="processes that read files; by default one per core, 8 at most"
    )
    keep_mb: int = Field(
        default=DEFAULT_MB,
        ge=0,
        exclude=True,
        description="decoded picture files are kept in memory if all take so many megabytes at most; 0: never",
    )
    augmentation: Variations = Field(
        default=Variations(), description="training rows varied, in seeded views; by default as they are"
    )

    def load(self, progress: OnProgress | None = None) -> Dataset:
        """The data, from the cache if they are there, or else built and stored in it."""
        built = self.build(progress or quiet)
        if self.augmentation != Variations():
            built = replace(built, augmentation=self.augmentation)
        for source in built.inputs.values():
            if isinstance(source, FileSource):
                source.files.keep(self.keep_mb * 1_000_000)
        if self.workers is not None:
            built = replace(built, workers=Workers(self.workers))
        return hide_labels(built, self.labelled, self.seed if self.label_seed is None else self.label_seed)

    @abc.abstractmethod
    def build(self, progress: OnProgress) -> Dataset:
        """The data with all labels."""

    @abc.abstractmethod
    def cached(self) -> CacheEntry | None:
        """The cache entry of these data; None if they are not built yet."""

    @abc.abstractmethod
    def tiny(self) -> "DataConfig":
        """Settings of the same kind of data with a few hundred rows, for a quick check."""

    def folder(self) -> Path:
        """The folder of downloaded data.

        Raises:
            DataError: neither `root` nor the environment names one that exists.
        """
        value = self.root or os.environ.get(ROOT_VARIABLE)
        if not value:
            raise DataError(
                f"{self.name} needs downloaded data: set data.root, or the environment variable {ROOT_VARIABLE}, "
                "to their folder"
            )
        path = Path(value).expanduser()
        if not path.is_dir():
            raise DataError(f"{self.name}: the folder {path} does not exist (data.root or {ROOT_VARIABLE})")
        return path
