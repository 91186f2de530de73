"""A comparison as data: its methods, students, seeds and label fractions, and the cells that they form."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from crossdistill.data.dataset import Dataset
from crossdistill.errors import CrossdistillError, RecipeError, SettingError, nearest
from crossdistill.overrides import sentences
from crossdistill.recipe import Recipe
from crossdistill.recipes import make, names_student, setup_by_name
from crossdistill.recipes.own_files import is_file_data
from crossdistill.recipes.setup import ExperimentSetup, Kind
from crossdistill.recipes.stages import PLANS

SEED_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison.

    `epochs` is the fraction of its usual epochs that each stage trains; `trial` is the number of a tuning trial.
    """

    data: str
    method: str
    student: str
    teachers: str | None
    labelled: float
    control: str | None
    seed: int
    settings: tuple[str, ...] = ()
    tiny: bool = False
    epochs: float = 1.0
    trial: int | None = None

    @property
    def name(self) -> str:
        """Name of the cell's folder, unique within a grid."""
        parts = [self.method, self.student, self.teachers, f"{self.labelled:g}", self.control, f"seed{self.seed}"]
        parts += [] if self.trial is None else [f"trial{self.trial}"]
        return "-".join(part.replace("+", "") for part in parts if part)

    @property
    def setting(self) -> "Setting":
        """The setting that this cell shares with the cells of other seeds."""
        return Setting(self.method, self.student, self.teachers, self.labelled, self.control)

    def recipe(self) -> Recipe:
        """The recipe that this cell runs. Settings of stages that the cell lacks are ignored: they are for other cells.

        Raises:
            RecipeError: a setting does not fit the recipe.
        """
        stages = self.stages() if any(map(stage_of, self.settings)) else frozenset()
        made = self._made([text for text in self.settings if stage_of(text) in {None, *stages}])
        if self.epochs < 1:
            # Every stage with epochs trains for at least one.
            part = [max(min(stage.epochs, 1), round(self.epochs * stage.epochs)) for stage in made.stages]
            shortened = (stage.model_copy(update={"epochs": e}) for stage, e in zip(made.stages, part, strict=True))
            made = made.model_copy(update={"stages": tuple(shortened)})
        return made.tiny() if self.tiny else made

    def stages(self) -> frozenset[str]:
        """Names of the recipe's stages.

        Raises:
            RecipeError: a setting outside the stages does not fit the recipe.
        """
        made = self._made([text for text in self.settings if stage_of(text) is None])
        return frozenset(stage.name for stage in made.stages)

    def _made(self, settings: Sequence[str]) -> Recipe:
        chosen = [f"student={self.student}"]
        if is_file_data(self.data) or names_student(self.data):
            # A network that a setting names is the student of the modality that it reads, and of no other.
            network = [text for text in settings if setting_path(text) == "student"]
            settings = [text for text in settings if text not in network]
            alone = not is_file_data(self.data)
            if network and (alone or next(iter(setup_by_name(self.data, self.settings).networks)) == self.student):
                chosen = network
        texts = [*chosen, f"labelled={self.labelled!r}", *settings]
        # Teachers that settings name are those of the kind "named" already.
        by_name = self.teachers == "named" and any(setting_path(text).startswith("teachers.") for text in settings)
        texts += [f"teachers={self.teachers}"] if self.teachers and not by_name else []
        texts += [f"control={self.control}"] if self.control else []
        return make(f"{self.data}/{self.method}", texts, self.seed)

    def as_data(self) -> dict[str, Any]:
        """The fields as plain values, for other processes."""
        return asdict(self)

    @classmethod
    def from_data(cls, values: Mapping[str, Any]) -> "Cell":
        """A cell from the values of `as_data`."""
        return cls(**{**values, "settings": tuple(values["settings"])})


@dataclass(frozen=True, slots=True)
class Setting:
    """The unit of comparison: a method (or its control) with its teachers, on a student, at a fraction of labels."""

    method: str
    student: str
    teachers: str | None
    labelled: float
    control: str | None

    @property
    def title(self) -> str:
        """Method and teachers, as text for tables."""
        name = f"{self.method}@{self.control}" if self.control else self.method
        return f"{name} ({self.teachers})" if self.teachers else name

    @property
    def place(self) -> str:
        """Student and fraction of labels, as text for tables."""
        return f"{self.student}, {percent(self.labelled)} of the labels"


def setting_path(setting: str) -> str:
    """The path of a setting `a.b=c`."""
    return setting.partition("=")[0].strip()


def stage_of(setting: str) -> str | None:
    """The stage name in the path of a setting; None if the path has a position there or leads elsewhere."""
    path = setting.partition("=")[0].strip().split(".")
    return path[1] if len(path) > 2 and path[0] == "stages" and not path[1].isdigit() else None


def unplaced(cells: Sequence[Cell]) -> list[str]:
    """Faults of settings whose stage no cell has, one sentence each."""
    wanted = {text: stage for cell in cells for text in cell.settings if (stage := stage_of(text)) is not None}
    if not wanted:
        return []
    known: set[str] = set()
    for cell in cells:
        if cell.seed == cells[0].seed:
            try:
                known |= cell.stages()
            except RecipeError:
                # `check_feasibility` reports the fault for the cell.
                return []
    unknown = {text: stage for text, stage in wanted.items() if stage not in known}
    return [
        f"--set {text}: no method of the comparison has a stage {stage!r}; {nearest(stage, known)}"
        for text, stage in unknown.items()
    ]


def percent(fraction: float) -> str:
    """A fraction as a percentage with three significant digits."""
    return f"{100 * fraction:.3g}%"


def standard_methods() -> tuple[str, ...]:
    """The methods that `all` stands for: every method once, without variants.

    A variant has another method's name with a hyphen and a suffix (`mst-distill-a`).
    """
    return tuple(name for name in PLANS if not any(name.startswith(f"{other}-") for other in PLANS))


class Grid(BaseModel):
    """All cells of a comparison. Controls run only at the smallest label fraction, where a teacher matters most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...]
    students: tuple[str, ...] = Field((), validate_default=True)
    """Modalities of the students; empty: all."""
    teachers: tuple[Kind, ...] = ()
    """Kinds of teachers; empty: each method's default."""
    seeds: int = Field(3, ge=1, le=SEED_LIMIT)
    labelled: tuple[float, ...] = (1.0,)
    control: Literal["shuffled"] | None = None
    tiny: bool = False
    sweep: tuple[str, ...] = ()
    """Tuned fields with their values (FIELD=a,b,c); every method gets the same number of trials."""
    budget: float | None = Field(None, gt=0)
    """Minutes for the whole comparison; seeds and epochs are picked to fit."""
    epochs: float = Field(1.0, gt=0, le=1)
    """Fraction of its usual epochs that each stage trains."""

    @field_validator("data")
    @classmethod
    def _known_data(cls, value: str) -> str:
        # Of a table or folder, the settings belong to it, and they are validated next.
        if not is_file_data(value):
            _setup(value, ())
        elif Path(value).suffix and not Path(value).expanduser().exists():
            raise ValueError(f"{value}: there is no such file")
        return value

    @field_validator("settings")
    @classmethod
    def _known_files(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:  # pydantic's type is a protocol
        data = info.data.get("data", "")
        networks = ("student",) if is_file_data(data) or names_student(data) else ()
        for text in value:
            if setting_path(text) in OF_CELLS and setting_path(text) not in networks:
                option = OF_CELLS[setting_path(text)]
                raise ValueError(f"{text}: every cell has its own {setting_path(text)}; say it with {option}")
        if is_file_data(info.data.get("data", "")):
            _setup(info.data["data"], value)
        return value

    @field_validator("teachers")
    @classmethod
    def _known_teachers(cls, value: tuple[Kind, ...], info: Any) -> tuple[Kind, ...]:  # pydantic's type is a protocol
        known = _setup(**_named(info)).kinds if _named(info) else value
        for kind in value:
            if kind not in known:
                raise ValueError(f"these data have no {kind} teachers; they have {', '.join(known) or 'none'}")
        return value

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PLANS:
                raise ValueError(f"no method is called {name!r}; {nearest(name, PLANS)}")
        return value

    @field_validator("students")
    @classmethod
    def _known_students(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:  # pydantic's own type is a protocol
        # Data that failed their own validation have no known students.
        known = tuple(_setup(**_named(info)).networks) if _named(info) else value
        for name in value:
            if name not in known:
                raise ValueError(f"no modality is called {name!r}; {nearest(name, known)}")
        return value or known

    @field_validator("labelled")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for fraction in value:
            if not 0 < fraction <= 1:
                raise ValueError(f"wanted fractions of the labels in (0, 1], found {fraction}")
        return value

    @classmethod
    def parse(
        cls,
        data: str,
        *,
        preset: str | None = None,
        settings: Sequence[str] = (),
        sweep: Sequence[str] = (),
        tiny: bool = False,
        **texts: Any,
    ) -> "Grid":
        """A grid from command-line arguments; `None` stands for the preset's value, or the default.

        Raises:
            RecipeError: a value is invalid; lists all faults.
        """
        if preset is not None and preset not in PRESETS:
            raise SettingError(f"--preset: no preset is called {preset!r}; {nearest(preset, PRESETS)}")
        values: dict[str, Any] = {"data": data, "settings": tuple(settings), "tiny": tiny, "sweep": tuple(sweep)}
        values["methods"] = ("supervised", "kd", "mst-distill")
        values |= PRESETS.get(preset or "", {})
        for name, text in texts.items():
            if text is not None:
                values[name] = _words(text) if name in LISTS else text
        groups = (standard_methods() if name == "all" else (name,) for name in values.get("methods", ()))
        values["methods"] = tuple(dict.fromkeys(name for names in groups for name in names))
        return checked_grid(values)

    def cells(self) -> list[Cell]:
        """Every run; seeds are the outermost loop, so that parallel workers start on different settings."""
        cells = []
        for seed in range(self.seeds):
            for student in self.students:
                for labelled in self.labelled:
                    for method in self.methods:
                        for kind in self._kinds(method):
                            base = (self.data, method, student, kind, labelled)
                            rest = (seed, self.settings, self.tiny, self.epochs)
                            cells.append(Cell(*base, None, *rest))
                            if self.control and kind is not None and labelled == min(self.labelled):
                                cells.append(Cell(*base, self.control, *rest))
        return cells

    def undefined(self) -> dict[str, str]:
        """Methods that lack a form with the requested teachers, or belong to other data, each with the reason."""
        reasons = {}
        for method in self.methods:
            plan = PLANS[method]
            if self._other_data(method):
                settings = " ".join(f"--set data.{name}={value}" for name, value in self._data_settings(method).items())
                reasons[method] = (
                    f"{method} uses other data ({settings.replace('--set ', '')}) than other methods here, and only "
                    f"results on the same rows can be compared; give {settings}, which applies to all methods"
                )
            elif self.teachers and plan.kind is not None and not self._kinds(method):
                possible = ", ".join(dict.fromkeys((plan.kind, *plan.kinds)))
                requested = ", ".join(self.teachers)
                reasons[method] = f"{method} has no form with teachers {requested}; possible: {possible}"
        return reasons

    def _data_settings(self, method: str) -> dict[str, Any]:
        """The data settings of a method's preset that are not overridden for all methods."""
        overridden = {text.partition("=")[0].strip() for text in self.settings}
        data = setup_by_name(self.data, self.settings).data
        known = {} if isinstance(data, Dataset) else type(data).model_fields
        preset = PLANS[method].data_settings()
        return {name: value for name, value in preset.items() if name in known and f"data.{name}" not in overridden}

    def _other_data(self, method: str) -> bool:
        settings = self._data_settings(method)
        return bool(settings) and any(self._data_settings(other) != settings for other in self.methods)

    def _kinds(self, method: str) -> list[str | None]:
        """The kinds of teachers that a method runs with; empty if it cannot be compared.

        A method whose default is both kinds at once runs with both if both are requested, separately or together.
        """
        plan = PLANS[method]
        if self._other_data(method):
            return []
        if plan.kind is None:
            return [None]
        if not self.teachers:
            # The kind that the setup has: data of one modality have only the teachers that their setup names.
            return [setup_by_name(self.data, self.settings).kind(None, plan.kind, plan.kinds)]
        if plan.kind == BOTH and {"mm", "cm"} <= set(self.teachers):
            return [BOTH]
        return [kind for kind in self.teachers if kind in (plan.kind, *plan.kinds, "named")]


def checked_grid(values: Mapping[str, Any]) -> Grid:
    """A grid from plain values.

    Raises:
        RecipeError: a value is invalid; lists all faults.
    """
    try:
        return Grid.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"compare {values['data']}", sentences(error)) from error


def _setup(data: str, settings: Sequence[str]) -> ExperimentSetup:
    try:
        return setup_by_name(data, settings)
    except CrossdistillError as error:
        raise ValueError(str(error)) from error


def _named(info: Any) -> dict[str, Any]:
    """The data and settings of a grid under validation; empty if one of them is faulty."""
    named = {name: info.data[name] for name in ("data", "settings") if name in info.data}
    return named if len(named) == 2 else {}


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))


OF_CELLS = {
    "student": "--students",
    "teachers": "--teachers",
    "labelled": "--labelled",
    "control": "--control",
    "seed": "--seeds",
}
"""What a comparison varies, each with its option."""
BOTH = "mm+cm"
LISTS = frozenset({"methods", "students", "teachers", "labelled"})

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "demo": {
        "seeds": 5,
        "labelled": (1.0, 0.05),
        "control": "shuffled",
        "methods": ("supervised", "kd", "mst-distill"),
    },
}
