"""One stage of a recipe: its method, its length, the members that train, and the choice of the best state."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_serializer,
    model_validator,
)

from crossdistill.errors import SettingError
from crossdistill.method import STUDENT, MethodConfig
from crossdistill.methods import method_config
from crossdistill.models.merging import KEEP, SCALE, check_read
from crossdistill.models.merging import Method as MergeMethod
from crossdistill.overrides import GROWS, KIND
from crossdistill.runtime.precision import PrecisionName
from crossdistill.runtime.torch_optimizers import OWN_NAMES, argument_faults, optimizer_name, plain_arguments, takes
from crossdistill.weighting import AnyWeighting, SumConfig


def _without_defaults(model: BaseModel, plain: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Plain values without these fields where they have their defaults.

    Recipes, run folders and keys of stages written before these fields existed stay valid.
    """
    fields = type(model).model_fields
    defaults = {name: fields[name].get_default(call_default_factory=True) for name in names}
    return {
        name: value for name, value in plain.items() if name not in defaults or getattr(model, name) != defaults[name]
    }


class OptimizerConfig(BaseModel):
    """Optimizer, learning rate and schedule of a stage. The rate is constant without `schedule` and `warm_up`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("adam", json_schema_extra=KIND)
    """A class of `torch.optim`, in any case: "adam", "sgd", "RMSprop", "NAdam"."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate at the start, or at the end of the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty, or decoupled decay for AdamW, as the class of `torch.optim` defines it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; other optimizers take theirs in `arguments`."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Further arguments of the class, by torch's names: `{"betas": [0.9, 0.95]}`, `{"alpha": 0.9}`."""
    schedule: Literal["constant", "cosine", "linear", "milestones"] = "constant"
    """Learning rate after the warm-up: "cosine" and "linear" fall to zero at the end of the stage; "milestones"
    multiplies the rate by `gamma` at each of `milestones`."""
    warm_up: float = Field(0.0, ge=0)
    """Epochs of this stage (0.5 is half of one) over which the rate grows linearly from nearly zero."""
    milestones: tuple[float, ...] = ()
    """Epochs of this stage, counted from its start, warm-up included."""
    gamma: float = Field(0.1, gt=0, lt=1)
    """Factor of the learning rate at each milestone (dimensionless)."""
    no_decay_on_norms_and_biases: bool = False
    """Exclude the parameters of normalisation layers, biases, and all other one-dimensional parameters from weight
    decay."""
    rates: Mapping[str, float] = Field(default_factory=dict)
    """Separate learning rates of parts that train, by member name or "method"."""
    moments: Literal["memory", "disk"] = "memory"
    """Storage of Adam's two moments, for weights of 32 MiB and more. "disk": in files of the run's folder, so that
    masks too large for memory can be trained; on a CPU."""

    @field_validator("name")
    @classmethod
    def _of_torch(cls, value: str) -> str:
        return optimizer_name(value)

    @model_validator(mode="after")
    def _together(self) -> "OptimizerConfig":
        momentum = {"momentum": self.momentum} if self.name == "sgd" else {}
        faults = argument_faults(self.name, self.arguments, lr=self.learning_rate, **momentum)
        if self.moments == "disk" and not self.in_parts:
            why = "it has arguments other than betas and eps" if self.name in ("adam", "adamw") else "not adam or adamw"
            faults.append(f"moments: {self.name} has none to keep on disk ({why}); leave moments in memory")
        if self.weight_decay and not takes(self.name, "weight_decay"):
            faults.append(f"weight_decay: {self.name} has none; set it to 0")
        if (self.schedule == "milestones") != bool(self.milestones):
            faults.append(
                f"milestones: schedule is {self.schedule!r} and milestones are {list(self.milestones)}; wanted "
                "schedule 'milestones' with at least one milestone, or neither"
            )
        if list(self.milestones) != sorted({epoch for epoch in self.milestones if epoch > 0}):
            faults.append(f"milestones: wanted epochs above 0 in rising order, found {list(self.milestones)}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_serializer(mode="wrap")
    def _plain(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        added = ("arguments", "warm_up", "milestones", "gamma", "no_decay_on_norms_and_biases")
        return _without_defaults(self, handler(self), added)

    @property
    def in_parts(self) -> bool:
        """Whether large weights can be updated in chunks: Adam and AdamW without variants such as amsgrad."""
        return self.name in ("adam", "adamw") and set(self.arguments) <= {"betas", "eps"}

    @property
    def is_constant(self) -> bool:
        """Whether every step has the same learning rate."""
        return self.schedule == "constant" and self.warm_up == 0

    def torch_arguments(self) -> dict[str, Any]:
        """`arguments` in the form that torch takes."""
        return plain_arguments(self.arguments)

    def beyond(self, epochs: int) -> list[str]:
        """Faults of a schedule that does not fit into a number of epochs."""
        late = [epoch for epoch in self.milestones if epoch >= epochs]
        faults = (
            [f"optimizer.milestones: {late} are not before the end, and the stage has {epochs} epochs"] if late else []
        )
        if self.warm_up > epochs:
            faults.append(f"optimizer.warm_up: {self.warm_up:g} epochs of warm-up, and the stage has {epochs}")
        return faults

    def within(self, epochs: int) -> "OptimizerConfig":
        """The same settings with a schedule that fits into a number of epochs."""
        reached = tuple(epoch for epoch in self.milestones if epoch < epochs)
        schedule = self.schedule if reached or not self.milestones else "constant"
        return self.model_copy(
            update={"milestones": reached, "schedule": schedule, "warm_up": min(self.warm_up, float(epochs))}
        )


class MergeConfig(BaseModel):
    """The weights from which a learner starts a stage: those of other members, merged; see `models.merging`.

    The base of task vectors is the learner as it is before. One member of weight 1 is copied. Modules of the stage's
    method go on from those of the stages that trained the members, where names and shapes are equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Mapping[str, float] = Field(min_length=1, json_schema_extra=GROWS)
    """The share of each member, by name; without a base (linear) they sum to 1."""
    method: MergeMethod = "linear"
    """linear (interpolation), task (task vectors), or ties."""
    keep: float = Field(KEEP, gt=0, le=1)
    """Share of each task vector that ties keeps."""
    scale: float = Field(SCALE, allow_inf_nan=False)
    """Factor of the merged task vector of task and ties."""
    permute: bool = False
    """Put the units of all members into the order of the first one's, by training rows; for networks like HuBERT, and
    for linear alone."""

    @model_validator(mode="after")
    def _all_are_read(self) -> "MergeConfig":
        try:
            check_read(
                self.method,
                keep=None if self.keep == KEEP else self.keep,
                scale=None if self.scale == SCALE else self.scale,
                permute=self.permute,
            )
        except SettingError as error:
            raise ValueError(str(error).removeprefix("merge: ")) from error
        return self


class Stage(BaseModel):
    """A method with its length, the members that train, and the choice of the best state.

    `learner` is the member in the role of the student; `trains` lists what trains besides the method's own modules:
    member names, or `member:tap` for one layer alone. `STUDENT` stands for the recipe's student. A method is given by
    its settings, its name ("kd", every setting at its default) or a mapping with that name. The default name of a
    stage consists of its method and its learner.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name of the stage in overrides, in the output and in its folder; default: the method and its learner."""
    method: SerializeAsAny[MethodConfig]
    """A method by name ("kd"), or its settings ([methods](methods.md))."""
    epochs: int = Field(ge=0)
    """Passes over the training rows; 0 for methods that only measure."""
    batch_size: int = Field(64, ge=1)
    """Rows of one optimizer step, over all ranks and micro-batches."""
    learner: str = STUDENT
    """The member that the method trains as its student; default: the student of the recipe."""
    teachers: tuple[str, ...] | None = None
    """Members whose outputs the method reads; None: all teachers, including masked ones from earlier stages."""
    trains: tuple[str, ...] | None = None
    """Members that train; None: the learner, and all teachers where the method trains them (`collaborate`, `dml`,
    `c2kd`)."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning rate of the stage."""
    weighting: AnyWeighting = SumConfig()
    """Combination of the terms of the loss: sum, uncertainty, loss-ratio, gradnorm, pcgrad, dot."""
    select: Literal["best", "last"] = "best"
    """"best": lowest validation value, for each part separately, the earliest of equal ones; "last": the last epoch."""
    source: Literal["auto", "live", "banked"] = "auto"
    """Use of banks for outputs of frozen networks: where possible, never, or always (an error if impossible)."""
    micro_batches: int = Field(1, ge=1)
    """Parts of a batch that are computed one after another; their gradients add up to that of the whole batch
    (gradient accumulation). `batch_size` remains the rows of one optimizer step, so that results stay the same."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of the gradient of a step; None: no clipping."""
    steps: int | None = Field(None, ge=1)
    """Maximum number of steps in an epoch; None: all rows."""
    length_buckets: int = Field(0, ge=0)
    """Batches hold rows of similar length: so many batches of rows are sorted by length at a time; 0: random rows."""
    fresh: bool = False
    """Start the learner from its initial weights again, instead of the weights from earlier stages."""
    merge: MergeConfig | None = None
    """Start the learner from merged weights of other members."""
    precision: PrecisionName = "float32"
    """Precision of training passes; weights, losses, validation and banks stay float32."""
    compile: bool = False
    """Run networks through torch.compile. On a CPU this needs a C++ compiler."""
    cuda_graphs: bool = False
    """Replay each step as one CUDA graph: for students so small that kernel launches take longer than the kernels."""
    select_by: str | None = None
    """The metric on the validation split by which the student's best epoch is chosen; None: the lowest loss."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the learner's weights and buffers, such as 0.999, updated after
    each step. Validation uses the averaged network, and it is the result of the stage."""

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
        optimizer = self.optimizer
        settings = (optimizer.name, optimizer.momentum, optimizer.weight_decay, dict(optimizer.arguments))
        plain = settings == ("sgd", 0.0, 0.0, {})
        if self.weighting.plain_sgd and not plain:
            raise ValueError(
                f"the weighting {self.weighting.name!r} has momentum and weight decay of its own; set optimizer.name "
                "to sgd, optimizer.momentum to 0, optimizer.weight_decay to 0, and no optimizer.arguments"
            )
        late = optimizer.beyond(self.epochs) if self.epochs else []
        if late:
            raise ValueError("; ".join(late))
        if self.ema is not None and self.learner not in {part.partition(":")[0] for part in self.trained}:
            raise ValueError(f"ema: it averages {self.learner!r}, which does not train in this stage")
        if self.micro_batches > self.batch_size:
            raise ValueError(f"{self.micro_batches} micro-batches cannot share a batch of {self.batch_size} rows")
        for setting, given in {"fresh": self.fresh, "merge": bool(self.merged)}.items():
            if given and self.learner not in self.trained:
                raise ValueError(
                    f"{setting}: {self.learner!r} starts from other weights here, so it has to train as a whole"
                )
        if self.learner in self.merged:
            raise ValueError(f"merge: {self.learner!r} is the learner itself, which is merged from other members")
        if self.cuda_graphs:
            unfit = {
                "micro_batches of 1": self.micro_batches != 1,
                "the plain sum as weighting": self.weighting.name != "sum",
                "a constant learning rate": not optimizer.is_constant,
                "adam, adamw or sgd": optimizer.name not in OWN_NAMES,
                "float32 or bfloat16": self.precision == "float16",
            }
            if any(unfit.values()):
                raise ValueError(f"cuda_graphs needs {', '.join(what for what, holds in unfit.items() if holds)}")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("ema", "length_buckets", "merge", "select_by"))

    @property
    def merged(self) -> tuple[str, ...]:
        """The members of whose weights the learner's are merged at the start."""
        return () if self.merge is None else tuple(self.merge.weights)

    @property
    def members(self) -> tuple[str, ...]:
        """The members that the stage names besides its teachers."""
        parts = (part.partition(":")[0] for part in self.trained)
        return tuple(dict.fromkeys((self.learner, *parts, *self.merged)))

    @property
    def trained(self) -> tuple[str, ...]:
        """Parts that always train, besides the method's own modules; `trained_with` adds teachers."""
        return self.trained_with(())

    def trained_with(self, teachers: Iterable[str]) -> tuple[str, ...]:
        """Parts that train, besides the method's own modules, with these teachers."""
        if self.trains is not None:
            return self.trains
        return (self.learner, *(teachers if self.method.trains_teachers else ()))

    def tiny(self) -> "Stage":
        """The same stage in a very short form, for tests and first trials."""
        epochs = min(self.epochs, 2)
        return self.model_copy(
            update={
                "epochs": epochs,
                "steps": 4,
                "batch_size": min(self.batch_size, 32),
                "optimizer": self.optimizer.within(epochs) if epochs else self.optimizer,
            }
        )


def starting_as_student(stages: Iterable[Stage]) -> set[str]:
    """The learners of stages that start from a copy of the recipe's student."""
    return {stage.learner for stage in stages if stage.merged == (STUDENT,)}
