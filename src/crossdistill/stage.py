"""One stage of a recipe: which method, how long, what trains, and how the best state is chosen."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from crossdistill.method import STUDENT, MethodConfig
from crossdistill.methods import method_config
from crossdistill.runtime.precision import PrecisionName
from crossdistill.weighting import AnyWeighting, SumConfig


class OptimizerConfig(BaseModel):
    """How gradients become steps. The rate is constant unless `schedule` says otherwise, as in the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """For SGD alone."""
    schedule: Literal["constant", "cosine"] = "constant"
    """"cosine" falls to zero over the stage."""
    rates: Mapping[str, float] = Field(default_factory=dict)
    """Other learning rates for single parts that train, by member name or "method"."""
    moments: Literal["memory", "disk"] = "memory"
    """Where Adam keeps its two moments of weights of 32 MiB and more. "disk": in files of the run's folder, so that
    masks too large for memory can be trained; on a CPU."""

    @model_validator(mode="after")
    def _has_moments(self) -> "OptimizerConfig":
        if self.moments == "disk" and self.name == "sgd":
            raise ValueError("moments: sgd has none to keep on disk; take adam or adamw, or leave moments in memory")
        return self


class Stage(BaseModel):
    """A method, its length, what trains and how the best state is chosen.

    `learner` is the member that plays the student here; `trains` lists what moves besides the method's own
    modules: member names, or `member:tap` for one layer alone. `STUDENT` stands for the recipe's student. A method is
    its settings, its name ("kd", every setting at its default) or a mapping with that name. A stage without a name of
    its own is called after its method and its learner.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9-]*$")
    method: SerializeAsAny[MethodConfig]
    epochs: int = Field(ge=0)
    batch_size: int = Field(64, ge=1)
    """Rows of one optimizer step, over all ranks and micro-batches."""
    learner: str = STUDENT
    teachers: tuple[str, ...] | None = None
    """Who teaches; None: every teacher there is by then, those that graduated included."""
    trains: tuple[str, ...] | None = None
    """None: the learner, and every member that teaches where the method trains its teachers (`collaborate`, `dml`,
    `c2kd`)."""
    optimizer: OptimizerConfig = OptimizerConfig()
    weighting: AnyWeighting = SumConfig()
    select: Literal["best", "last"] = "best"
    """"best": lowest validation value, each part for itself, strictly lower wins; "last": the last epoch."""
    source: Literal["auto", "live", "banked"] = "auto"
    micro_batches: int = Field(1, ge=1)
    clip_norm: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    """At most so many steps in an epoch; None: all rows."""
    fresh: bool = False
    """Start the learner from its initial weights again, instead of where the stages before left it."""
    precision: PrecisionName = "float32"
    """In which training passes compute; weights, losses, validation and banks stay float32."""
    compile: bool = False
    """Run networks through torch.compile. On a CPU this needs a C++ compiler."""
    cuda_graphs: bool = False
    """Replay each step as one CUDA graph: for students so small that their launches take longer than they do."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "name" in values or "method" not in values:
            return values
        method = values["method"]
        name = method.get("name") if isinstance(method, Mapping) else getattr(method, "name", method)
        learner = values.get("learner", STUDENT)
        text = f"{name}" if learner == STUDENT else f"{name}-{learner}"
        return {"name": re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-"), **values}

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return value if isinstance(value, MethodConfig) else method_config(value)

    @field_validator("weighting", mode="before")
    @classmethod
    def _weighting(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _together(self) -> "Stage":
        plain = (self.optimizer.name, self.optimizer.momentum, self.optimizer.weight_decay) == ("sgd", 0.0, 0.0)
        if self.weighting.plain_sgd and not plain:
            raise ValueError(
                f"the weighting {self.weighting.name!r} has momentum and weight decay of its own; set optimizer.name "
                "to sgd, optimizer.momentum to 0 and optimizer.weight_decay to 0"
            )
        if self.micro_batches > self.batch_size:
            raise ValueError(f"{self.micro_batches} micro-batches cannot share a batch of {self.batch_size} rows")
        if self.fresh and self.learner not in self.trained:
            raise ValueError(
                f"fresh: {self.learner!r} starts from its initial weights here, so it has to train as a whole"
            )
        if self.cuda_graphs:
            unfit = {
                "micro_batches of 1": self.micro_batches != 1,
                "the plain sum as weighting": self.weighting.name != "sum",
                "a constant learning rate": self.optimizer.schedule != "constant",
                "float32 or bfloat16": self.precision == "float16",
            }
            if any(unfit.values()):
                raise ValueError(f"cuda_graphs needs {', '.join(what for what, holds in unfit.items() if holds)}")
        return self

    @property
    def trained(self) -> tuple[str, ...]:
        """What is sure to move, besides the method's own modules; `trained_with` adds teachers."""
        return self.trained_with(())

    def trained_with(self, teachers: Iterable[str]) -> tuple[str, ...]:
        """What moves, besides the method's own modules, where these members teach."""
        if self.trains is not None:
            return self.trains
        return (self.learner, *(teachers if self.method.trains_teachers else ()))

    def tiny(self) -> "Stage":
        """The same stage, over in a moment: for tests and first looks."""
        return self.model_copy(
            update={"epochs": min(self.epochs, 2), "steps": 4, "batch_size": min(self.batch_size, 32)}
        )
