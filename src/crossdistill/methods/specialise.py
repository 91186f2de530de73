"""MST-Distill's second stage: masks that adapt frozen teachers to the student (Li et al., 2025, Eq. 5-8)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError, SettingError, ShapeError
from crossdistill.losses.kl import distillation_kl
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, module_key
from crossdistill.methods.hidden_layers import hidden_layers
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.nets.mask import mask_for, mask_units, mask_width
from crossdistill.nets.mask_losses import MaskedTap, masked_losses
from crossdistill.nets.mask_low_rank import low_rank_mask_for
from crossdistill.network import Network
from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal, picked, shared_rows
from crossdistill.teacher import Masked, Teacher, TeacherBase


class Specialise(MethodConfig):
    """One mask network per named tap of each teacher, trained to match the frozen student's predictions.

    No labels are used. The next stage has each masked teacher as `teacher@tap`. Without `taps`, every teacher is
    masked at its intermediate and its penultimate layer, as in the paper: `hidden_layers` defines these.
    """

    makes_next_teachers: ClassVar[bool] = True
    name: Literal["specialise"] = "specialise"
    taps: Mapping[str, tuple[str, ...]] | None = None
    """The masked layers of each teacher, each with its own mask; None: chosen, see above."""
    heads: int = Field(3, ge=1)
    width_factor: int = Field(2, ge=1)
    """The dimension of the mask's attention is about (values at the tap / width_factor)."""
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    squared: bool = True
    """Multiply divergences by T², as the released code does (the paper writes none)."""
    select: Literal["each", "joint"] = "each"
    """Select the best epoch of each mask, or one epoch for all masks (the released code)."""
    masknet: Literal["full", "low_rank"] = "full"
    """"low_rank": the mask's projector has about 50 times fewer parameters; an addition of this package."""
    rank: int | None = Field(None, ge=1)
    """Rank of "low_rank"; None: the largest with at most 1/50 of the projector's parameters (1 for taps below 52 units,
    for which no rank is that small)."""
    stacked: bool = False
    """Apply the masks of preceding masked teachers to each one as well (an error of the released code)."""

    def choose_layers(
        self, networks: Mapping[str, Network], batch: Batch
    ) -> tuple[MethodConfig, Mapping[str, Sequence[str]]]:
        """The intermediate and the penultimate layer of each teacher, if `taps` is None.

        Raises:
            ApplicabilityError: a teacher has no suitable layer before its last; names the teacher.
        """
        if self.taps is not None:
            return self, {}
        layers = {name: hidden_layers(network, batch, self._fits) for name, network in networks.items()}
        without = sorted(name for name, named in layers.items() if not named)
        if without:
            raise ApplicabilityError(
                f"specialise: no layer before the last one of {without} can be masked (that takes a layer that runs "
                f"once, of {self.heads * self.width_factor} units or more); name layers with `taps`, or leave these "
                "teachers out of the stage's `teachers`"
            )
        return self.model_copy(update={"taps": layers}), layers

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a mask with these settings exists for a tap of this shape."""
        try:
            mask_width(mask_units(shape), self.heads, self.width_factor)
        except (SettingError, ShapeError):
            return False
        return True

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds the masks at the taps' sizes.

        Raises:
            ApplicabilityError: a listed teacher does not exist, or its logits have another shape than the student's.
            SignalError: a teacher has no such tap.
        """
        if self.rank is not None and self.masknet != "low_rank":
            raise SettingError(f"specialise: rank = {self.rank} needs low-rank masks; set masknet to 'low_rank'")
        if self.taps is None:
            raise SettingError("specialise: `taps` is None; name layers, or call `choose_layers` before `build`")
        if not self.taps or not all(self.taps.values()):
            raise SettingError("specialise: `taps` has to name at least one layer for each teacher that it names")
        absent = sorted(set(self.taps) - set(teachers))
        if absent:
            raise ApplicabilityError(
                f"specialise: `taps` name teachers that this stage does not have: {absent}; it has {sorted(teachers)}"
            )
        chosen = {name: teachers[name] for name in self.taps}
        require_same_logits(self.name, student, chosen)
        masks = {
            masked_name(name, tap): self._mask(chosen[name].feature(tap, f"teacher {name!r}"))
            for name, taps in self.taps.items()
            for tap in taps
        }
        return _Specialise(self, masks)

    def _mask(self, shape: tuple[int, ...]) -> nn.Module:
        if self.masknet == "low_rank":
            return low_rank_mask_for(shape, self.heads, self.width_factor, self.rank)
        return mask_for(shape, self.heads, self.width_factor)


class _Specialise(Method):
    judged_by_targets = False

    def __init__(self, config: Specialise, masks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        assert config.taps is not None
        self.config, self.taps = config, dict(config.taps)
        self.masks = nn.ModuleDict({module_key(name): mask for name, mask in masks.items()})

    def mask(self, teacher: str, tap: str) -> nn.Module:
        """The mask at a tap of a teacher."""
        return self.masks[module_key(masked_name(teacher, tap))]

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        cuts = {name: frozenset(map(Signal.cut, taps)) for name, taps in self.taps.items()}
        return {STUDENT: frozenset({Signal.LOGITS}), **cuts}

    def parts(self) -> Mapping[str, nn.Module]:
        if self.config.select == "joint":
            return {"masks": self.masks}
        return {masked_name(name, tap): self.mask(name, tap) for name, taps in self.taps.items() for tap in taps}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        rows = self._divergences(batch, outputs, teachers)
        return Step({f"kl/{name}": Term(value, group=name) for name, value in rows.items()}, outputs)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        rows = self._divergences(batch, student(batch), teachers)
        if self.config.select == "each":
            return rows
        # The released criterion: the sum over teachers of the mean over their masks.
        total = sum(rows[masked_name(name, tap)] / len(taps) for name, taps in self.taps.items() for tap in taps)
        assert isinstance(total, Tensor)
        return {"masks": total}

    def next_teachers(self, teachers: Mapping[str, Teacher]) -> Mapping[str, Teacher]:
        masked: dict[str, Teacher] = {}
        for name, taps in self.taps.items():
            for index, tap in enumerate(taps):
                applied = taps[: index + 1] if self.config.stacked else (tap,)
                masks = {each: self.mask(name, each) for each in applied}
                masked[masked_name(name, tap)] = Masked(masked_name(name, tap), teachers[name], masks)
        return masked

    def _divergences(
        self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]
    ) -> dict[str, Float[Tensor, " R"]]:
        """KL(student ‖ masked teacher) by the name of the masked teacher, per row, on shared rows.

        A teacher is run up to its taps once, whatever the number of its masks.
        """
        masked_taps: dict[str, MaskedTap] = {}
        for name, taps in self.taps.items():
            teacher = teachers[name]
            if TeacherBase.of(teacher).trained:
                raise SettingError(f"specialise masks frozen teachers, and {name!r} trains; leave it out of `trains`")
            outputs = teacher(batch)
            teacher_rows, student_rows, _ = shared_rows(outputs, student)
            target = picked(student.need(Signal.LOGITS), student_rows).detach()
            for tap in taps:
                cut = outputs.cuts[tap]
                loss = partial(self._divergence, cut, teacher.tail(tap), teacher_rows, target)
                # A row's loss needs no other rows if each row has a target and only the value crosses the cut.
                independent = teacher_rows is None and not cut.context and len(cut.value) > 0
                masked_taps[masked_name(name, tap)] = MaskedTap(self.mask(name, tap), cut.value, loss, independent)
        rows = masked_losses(list(masked_taps.values()), batch.total_rows)
        return dict(zip(masked_taps, rows, strict=True))

    def _divergence(
        self, cut: Cut, tail: Callable[[Cut], Outputs], kept: Tensor | None, target: Tensor, masked: Tensor, rows: slice
    ) -> Float[Tensor, " R"]:
        """KL(student ‖ teacher) of the batch's `rows`, with the teacher continued from the masked value at the tap.

        `kept` are the teacher's rows that the student has too (None: all); `target` has the student's logits of them.
        """
        outputs = tail(cut.rewritten(masked))
        logits = picked(outputs.need(Signal.LOGITS), kept)
        return distillation_kl(logits, target[rows], self.config.temperature, squared=self.config.squared)


def masked_name(teacher: str, tap: str) -> str:
    """The name of a teacher with a mask at a tap."""
    return f"{teacher}@{tap}"
