"""A whole experiment as typed, frozen data: data, student, teachers, stages."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    SerializeAsAny,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from crossdistill.backends.names import Dtype, check_name, modalities, settings_of
from crossdistill.backends.prompts import TakesZeroShot
from crossdistill.backends.tune import check_tune
from crossdistill.bank.bank import BankSettings
from crossdistill.data import find_data
from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.errors import RecipeError, SettingError, nearest
from crossdistill.method import STUDENT
from crossdistill.models import build_network
from crossdistill.models.own_network import LIVE, as_network, plain_network
from crossdistill.network import Network
from crossdistill.overrides import overridden, parse_override, sentences
from crossdistill.runtime.files import NO_FILE, file_fault
from crossdistill.runtime.plain_yaml import read_yaml
from crossdistill.stage import Stage, starting_as_student

RESERVED = {"method", "weighting"}
"""Names of the other parts that train in a stage, for learning rates and saved states."""

LIVE_RECIPE = "# Built from live objects"
"""First words of a recipe file that cannot be run; the next line has the command that repeats it."""


class NetworkConfig(TakesZeroShot):
    """A network by name: of the table of models, or of another library. A plain text is its `model`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """A name of the table of models or of another package, or `timm:NAME`, `transformers:ID_OR_FOLDER`,
    `open_clip:NAME`, `onnx:FILE`, `run:FOLDER`, `bank:FILE`, `package.module:Class`."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Arguments of the model, except the number of classes."""
    reads: tuple[str, ...] | None = None
    """Modalities of the data, where their names differ from those in the table of models."""
    weights: Path | None = None
    """Initial weights: safetensors, or a public checkpoint (.pth, .pt, or a .tar of them), of which a teacher is frozen
    unless `tune` says otherwise; `MODEL:FILE` names both."""
    tune: str | None = None
    """The weights that can train: all, last-N (layers), head (the last layer), lora, lora-RANK, or frozen; by default
    all of a student, and of a teacher of another library none if it knows the classes of the data, else its head."""
    dtype: Dtype = "float32"
    """Precision of the weights of a network of another library."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return settings_of(value)

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        check_name(value)
        return value

    @field_validator("tune")
    @classmethod
    def _known_tune(cls, value: str | None) -> str | None:
        return value if value is None else check_tune(value)

    @field_validator("options")
    @classmethod
    def _no_classes(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if "classes" in value:
            raise ValueError("leave `classes` out: the model gets the number of the data's classes")
        return value

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the network reads."""
        return self.reads or modalities(self.model, self.options)

    @model_serializer(mode="wrap")
    def _plain(self, handler: Any) -> dict[str, Any]:
        # Newer settings at their defaults are left out, so that keys and files of older recipes stay equal.
        found: dict[str, Any] = handler(self)
        return {name: one for name, one in found.items() if (name, one) not in (("tune", None), ("dtype", "float32"))}

    @property
    def whole(self) -> "NetworkConfig":
        """The network as another member that trains: with its own `tune`, or else all weights, as the student."""
        return self.model_copy(update={"tune": self.tune or "all"})

    def build(self, classes: int) -> Network:
        """A network of the table, initialised from the current random state."""
        return build_network(self.model, self.reads, classes=classes, **self.options)


class Checkpoints(BaseModel):
    """Intervals between checkpoints of the running stage, from which a killed run resumes: by time, or by steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float = Field(5.0, ge=0)
    """Time between two checkpoints."""
    steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints, instead of the time."""
    keep: int = Field(2, ge=1)
    """Number of newest checkpoints to keep; each contains the best state."""


class Recipe(BaseModel):
    """One experiment: everything that determines its results, except for code and machine.

    `data`, `student` and `teachers` are settings of the tables, or live objects (a Dataset, Networks); a recipe with
    live objects runs and resumes from Python only. A network may also be a function that returns a Network, or a module
    if the data have one modality: `seed` then draws its weights, as it does for the tables' networks. A live Network
    keeps its weights for every seed.

    Raises:
        pydantic.ValidationError: a field of the wrong type or value; each fault with its path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "mine"
    """Name of the recipe in logs, folders and trackers."""
    data: SerializeAsAny[DataConfig] | InstanceOf[Dataset]
    """A name ("av-digits"), settings with that name, or a Dataset."""
    student: NetworkConfig | InstanceOf[Network]
    """The network that is trained and saved."""
    teachers: Mapping[str, NetworkConfig | InstanceOf[Network]] = Field(default_factory=dict)
    """Networks by the names that stages and tables use."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The stages, in the order in which they run."""
    seed: int = Field(0, ge=0)
    """Seed of initial weights and of the order of rows."""
    student_name: str | None = None
    """Name of the student among the members; by default the modalities that it reads ("image", "image+audio")."""
    control: Literal["shuffled"] | None = None
    """"shuffled": in distillation the teachers read other training rows, by one fixed permutation."""
    device: str = "auto"
    """Device of the run: "auto", "cpu", "cuda", "mps"."""
    channels_last: bool = False
    """Store images channels last in memory: equal results up to rounding, faster convolutions on most machines."""
    checkpoints: Checkpoints = Checkpoints()
    """Intervals between checkpoints of a running stage, and the number of checkpoints to keep."""
    bank: BankSettings = BankSettings()
    """Space and precision of the stored outputs of frozen networks; each stage's `source` turns them on or off."""
    tracking: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that receive the metrics besides metrics.jsonl, which is always written."""
    method: str | None = None
    """Name of the method in tables; by default the last stage's method."""
    kind: Literal["mm", "cm", "mm+cm", "named"] | None = None
    """Kind of the teachers, for tables: multimodal, cross-modal, both, or those that a setup names."""
    metrics: tuple[str, ...] = ()
    """The metrics of results and tables, the main one first; by default those of the data's task."""
    origin: str | None = None
    """The command that builds this recipe again, where a function built it."""

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        if isinstance(value, str | Mapping):
            settings = {"name": value} if isinstance(value, str) else dict(value)
            return find_data(str(settings.get("name"))).model_validate(settings)
        return value

    @field_validator("student", mode="before")
    @classmethod
    def _student(cls, value: Any, info: Any) -> Any:  # pydantic's own type is a protocol
        return as_network(value, _modalities(info))

    @field_validator("teachers", mode="before")
    @classmethod
    def _teachers(cls, value: Any, info: Any) -> Any:  # pydantic's own type is a protocol
        if not isinstance(value, Mapping):
            return value
        teachers, faults = dict(value), []
        for name, teacher in value.items():
            try:
                teachers[name] = as_network(teacher, _modalities(info))
            except ValueError as error:
                faults.append(f"{name!r}: {error}")
        if faults:
            raise ValueError("; ".join(faults))
        return teachers

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", value):
            raise ValueError(f"wanted auto, cpu, mps, cuda or cuda:NUMBER, found {value!r}")
        return value

    @field_validator("metrics", mode="before")
    @classmethod
    def _listed_metrics(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("tracking", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _plain(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Recipes written before the field existed stay equal.
        return {name: value for name, value in handler(self).items() if name != "metrics" or value}

    @field_serializer("data", mode="wrap")
    def _plain_data(self, value: Any, handler: Any) -> Any:
        if isinstance(value, Dataset):
            views = {} if value.augmentation is None else {"augmentation": value.augmentation.key}
            return {LIVE: f"Dataset {value.name!r}", "fingerprint": value.fingerprint, **views}
        return handler(value)

    @field_serializer("student", mode="wrap")
    def _plain_student(self, value: Any, handler: Any) -> Any:
        return plain_network(value) if isinstance(value, Network) else handler(value)

    @field_serializer("teachers")
    def _plain_teachers(self, value: Mapping[str, Any]) -> Any:
        return {
            name: plain_network(teacher) if isinstance(teacher, Network) else teacher.model_dump(mode="json")
            for name, teacher in value.items()
        }

    @model_validator(mode="after")
    def _together(self) -> "Recipe":
        """Check everything that depends on the recipe alone; report all faults together."""
        faults: list[str] = []
        if STUDENT in self.teachers:
            faults.append(f"teachers: {STUDENT!r} means the student itself; give the teacher another name")
        if self.learner in self.teachers:
            faults.append(f"teachers: {self.learner!r} is the student's name already; set student_name to another")
        for name in (self.learner, *self.teachers):
            if name in RESERVED or not re.fullmatch(r"\w[\w.@+-]*", name):
                faults.append(
                    f"members: {name!r} is no valid name (names occur in files and in `member:tap`): wanted letters, "
                    f"digits and . _ @ + -, and none of {', '.join(sorted(RESERVED))}"
                )
        names = [stage.name for stage in self.stages]
        faults += [f"stages: the name {name!r} is given twice" for name in sorted(set(names)) if names.count(name) > 1]
        members = {STUDENT, self.learner, *self.teachers}
        for stage in self.stages:
            where = f"stages.{stage.name}"
            for name in stage.members:
                if name not in members:
                    faults.append(f"{where}: no member is called {name!r}; {nearest(name, members)}")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def learner(self) -> str:
        """The student's name among the members."""
        return ("+".join(self.reads) or "network") if self.student_name is None else self.student_name

    @property
    def reads(self) -> tuple[str, ...]:
        """The modalities that the student reads."""
        return self.student.reads if isinstance(self.student, Network) else self.student.modalities

    @property
    def live(self) -> list[str]:
        """Fields with objects of the running program, which no file can contain."""
        teachers = ((f"teachers.{name}", teacher) for name, teacher in self.teachers.items())
        fields = [("data", self.data), ("student", self.student), *teachers]
        return [name for name, value in fields if isinstance(value, Dataset | Network)]

    @property
    def undrawn(self) -> list[str]:
        """Members that train and have the same initial weights for every seed: live modules."""
        teachers = ((stage, self.teachers if stage.teachers is None else stage.teachers) for stage in self.stages)
        named = {part.partition(":")[0] for stage, each in teachers for part in stage.trained_with(each)}
        moving = {self.learner if name == STUDENT else name for name in named}
        members = {self.learner: self.student, **self.teachers}
        live = {name for name, member in members.items() if isinstance(member, Network) and member.factory is None}
        return sorted(moving & live)

    def tiny(self) -> "Recipe":
        """The same recipe in a short form, seconds on a CPU: a few steps on a few rows."""
        data = self.data if isinstance(self.data, Dataset) else self.data.tiny()
        origin = self.origin and f"{self.origin.removesuffix(' --tiny')} --tiny"
        return self.model_copy(
            update={"data": data, "stages": tuple(stage.tiny() for stage in self.stages), "origin": origin}
        )

    def overridden(self, settings: list[str]) -> "Recipe":
        """A copy with `a.b=c` settings applied, each validated in the same way.

        Those of the student are also those of members that a stage starts as copies of it.

        Raises:
            RecipeError: all faults of all settings together.
        """
        recipe, faults = self, []
        for text in settings:
            try:
                recipe = overridden(recipe, *parse_override(text))
            except SettingError as error:
                faults.append(f"--set {text}: {error}")
        if faults:
            raise RecipeError(self.name, faults)
        return recipe.model_copy(update={"teachers": _following(self, recipe)})

    def to_yaml(self) -> str:
        """The recipe as the text of a file; with live objects, the file names them and states that it cannot be run."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        if not self.live:
            return text
        again = f"Run it again with: crossdistill run {self.origin}" if self.origin else "Run it again from Python."
        return f"{LIVE_RECIPE} ({', '.join(self.live)}), which no file can hold.\n# {again}\n{text}"

    @classmethod
    def from_yaml(cls, path: Path | str) -> "Recipe":
        """A recipe from a run folder's `recipe.yaml`.

        Raises:
            RecipeError: unreadable, faulty, or built from live objects; the message suggests what to do.
        """
        path = Path(path)
        fault = file_fault(path)
        if fault is not None:
            raise SettingError(f"no recipe can be read from {path}: {fault if fault == NO_FILE else f'it {fault}'}")
        try:
            values = read_yaml(path)
        except OSError as error:
            raise SettingError(f"no recipe can be read from {path}: {error.strerror or error}") from error
        except SettingError as error:
            raise RecipeError(str(path), [f"cannot be read as YAML: {error}"]) from error
        if not isinstance(values, dict):
            raise RecipeError(str(path), [f"wanted a mapping of fields, found {type(values).__name__}"])
        live = [name for name in ("data", "student") if _is_live(values.get(name))]
        teachers = values.get("teachers")
        if isinstance(teachers, dict):
            live += [f"teachers.{name}" for name, value in teachers.items() if _is_live(value)]
        if live:
            origin = values.get("origin")
            again = (
                f"crossdistill run {origin}"
                if origin
                else "call crossdistill.run(recipe, out) in the program that made it"
            )
            raise RecipeError(
                str(path),
                [
                    f"{', '.join(live)}: built from live objects, which no file can hold. To repeat it: {again}; a "
                    "function that returns the recipe (package.module:function) makes it repeatable from here"
                ],
            )
        return checked(values, str(path))


def checked(values: Mapping[str, Any], name: str) -> Recipe:
    """A recipe from plain values.

    Raises:
        RecipeError: every fault, one sentence each.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(name, sentences(error, Recipe, values)) from error
    except SettingError as error:
        raise RecipeError(name, [str(error)]) from error


def _following(before: Recipe, after: Recipe) -> Mapping[str, NetworkConfig | Network]:
    """The teachers after settings; those that started as copies of the student still have its settings."""
    then, now = before.student, after.student
    if isinstance(then, Network) or isinstance(now, Network):
        return after.teachers
    names, old = starting_as_student(after.stages), before.teachers
    copies = {name for name in names if old.get(name) == after.teachers.get(name) == then.whole}
    return {name: now.whole if name in copies else teacher for name, teacher in after.teachers.items()}


def _modalities(info: Any) -> tuple[str, ...]:
    """The modalities of the data, where these are validated already."""
    data = info.data.get("data")
    return tuple(data.inputs) if isinstance(data, Dataset) else ()


def _is_live(value: Any) -> bool:
    return isinstance(value, dict) and LIVE in value
