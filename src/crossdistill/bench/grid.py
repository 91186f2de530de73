"""A comparison as data: which methods, students, seeds and label fractions make which cells."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from crossdistill.errors import RecipeError, SettingError, nearest
from crossdistill.recipe import Recipe
from crossdistill.recipes import FAMILIES, family_kit, make
from crossdistill.recipes.plans import PLANS
from crossdistill.settings import sentences


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison."""

    data: str
    method: str
    student: str
    teachers: str | None
    labelled: float
    control: str | None
    seed: int
    settings: tuple[str, ...] = ()
    tiny: bool = False

    @property
    def name(self) -> str:
        """A folder's name, different for every cell of a grid."""
        parts = [self.method, self.student, self.teachers, f"{self.labelled:g}", self.control, f"seed{self.seed}"]
        return "-".join(part.replace("+", "") for part in parts if part)

    def recipe(self) -> Recipe:
        """The recipe that this cell runs.

        Raises:
            RecipeError: a setting does not fit it.
        """
        given = [f"student={self.student}", f"labelled={self.labelled!r}", *self.settings]
        given += [f"teachers={self.teachers}"] if self.teachers else []
        given += [f"control={self.control}"] if self.control else []
        made = make(f"{self.data}/{self.method}", given, self.seed)
        return made.tiny() if self.tiny else made

    def as_data(self) -> dict[str, Any]:
        """Plain values, for other processes."""
        return asdict(self)


class Grid(BaseModel):
    """All cells of a comparison. Controls are run at the scarcest labels only, where a teacher matters most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    methods: tuple[str, ...]
    students: tuple[str, ...] = Field(min_length=1)
    teachers: tuple[Literal["mm", "cm", "mm+cm"], ...] = ()
    """Which teachers; empty: each method's own."""
    seeds: int = Field(3, ge=1)
    labelled: tuple[float, ...] = (1.0,)
    control: Literal["shuffled"] | None = None
    settings: tuple[str, ...] = ()
    tiny: bool = False

    @field_validator("data")
    @classmethod
    def _known_data(cls, value: str) -> str:
        if value not in FAMILIES:
            raise ValueError(f"no recipes are made for {value!r}; {nearest(value, FAMILIES)}")
        return value

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PLANS:
                raise ValueError(f"no method is called {name!r}; {nearest(name, PLANS)}")
        return value

    @field_validator("labelled")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for fraction in value:
            if not 0 < fraction <= 1:
                raise ValueError(f"wanted fractions of the labels in (0, 1], found {fraction}")
        return value

    @classmethod
    def parse(
        cls, data: str, *, preset: str | None = None, settings: Sequence[str] = (), tiny: bool = False, **texts: Any
    ) -> "Grid":
        """A grid from the command line's words; `None` means the preset's, or the default.

        Raises:
            RecipeError: every fault, collected.
        """
        if preset is not None and preset not in PRESETS:
            raise SettingError(f"--preset: none is called {preset!r}; {nearest(preset, PRESETS)}")
        values: dict[str, Any] = {"data": data, "settings": tuple(settings), "tiny": tiny}
        if data in FAMILIES:
            values |= {"students": tuple(family_kit(data).networks), "methods": ("supervised", "kd", "mst-distill")}
        values |= PRESETS.get(preset or "", {})
        for name, text in texts.items():
            if text is not None:
                values[name] = tuple(text.split(",")) if name in LISTS else text
        if values.get("methods") == ("all",):
            values["methods"] = tuple(PLANS)
        if data in FAMILIES:
            unknown = [name for name in values["students"] if name not in family_kit(data).networks]
            if unknown:
                raise SettingError(
                    f"--students: {nearest(unknown[0], family_kit(data).networks)}; found {unknown[0]!r}"
                )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(f"compare {data}", sentences(error)) from error

    def cells(self) -> list[Cell]:
        """Every run, seeds outermost, so that several workers start on different ones."""
        found = []
        for seed in range(self.seeds):
            for student in self.students:
                for labelled in self.labelled:
                    for method in self.methods:
                        for kind in self._kinds(method):
                            base = (self.data, method, student, kind, labelled)
                            found.append(Cell(*base, None, seed, self.settings, self.tiny))
                            if self.control and kind is not None and labelled == min(self.labelled):
                                found.append(Cell(*base, self.control, seed, self.settings, self.tiny))
        return found

    def _kinds(self, method: str) -> list[str | None]:
        plan = PLANS[method]
        if plan.kind is None:
            return [None]
        if not self.teachers:
            return [plan.kind]
        return [kind for kind in self.teachers if kind == plan.kind or kind in plan.kinds]

    def text(self) -> str:
        """For people: the cells, before anything runs."""
        cells = self.cells()
        return "\n".join([f"{len(cells)} cells:", *(f"  {cell.name}" for cell in cells)])


LISTS = frozenset({"methods", "students", "teachers", "labelled"})

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "demo": {
        "seeds": 3,
        "labelled": (1.0, 0.05),
        "control": "shuffled",
        "methods": ("supervised", "kd", "mst-distill"),
    },
}
