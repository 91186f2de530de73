"""A teacher of several parts, live or banked, whose logits are summed with coefficients: RichKD (arXiv 2511.09286)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.errors import SettingError, ShapeError, SignalError, nearest
from crossdistill.losses.fusion import fused_logits, trusted_coefficients
from crossdistill.outputs import Outputs, OutputSpec, Signal, spread
from crossdistill.teacher import Teacher, TeacherBase


@dataclass(frozen=True, slots=True)
class Fusion:
    """The coefficients of parts by name, which are scaled to sum 1, and the temperature that divides a part's logits.

    In rows that a part lacks, the others share its coefficient. With `per_sample` the parts after the first one count
    in each row as far as they are confident and agree with it (`trusted_coefficients`).

    Raises:
        SettingError: no coefficient is above 0 or one is below, a temperature is not above 0, or it names no part.
    """

    coefficients: Mapping[str, float]
    temperatures: Mapping[str, float] = field(default_factory=dict)
    per_sample: bool = False

    def __post_init__(self) -> None:
        if min(self.coefficients.values(), default=0) < 0 or not sum(self.coefficients.values()) > 0:
            raise SettingError(
                f"fusion: coefficients {dict(self.coefficients)}; wanted numbers of 0 or more, and one above 0"
            )
        for name, value in self.temperatures.items():
            if name not in self.coefficients:
                raise SettingError(f"fusion: temperatures: no part {name!r}; {nearest(name, self.coefficients)}")
            if not value > 0:
                raise SettingError(f"fusion: temperatures.{name} is {value}; wanted a number above 0")

    def weights(self, seen: Bool[Tensor, "K B"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "K B"]:
        """The constant coefficients of the parts in each row, of sum 1; `seen` are the rows that a part has."""
        constant = torch.tensor(list(self.coefficients.values()), dtype=dtype, device=seen.device).unsqueeze(1)
        weights = constant * seen
        # Where all parts of a row have coefficient 0, they count equally; a row without parts is not used.
        for instead in (seen.to(dtype), torch.ones_like(weights)):
            weights = torch.where(weights.sum(0) > 0, weights, instead)
        return weights / weights.sum(0)

    def logits(self, parts: Mapping[str, Outputs], rows: int) -> tuple[Float[Tensor, "B C"], Bool[Tensor, " B"]]:
        """The fused logits of a batch of so many rows, and the rows that any part has.

        Raises:
            ShapeError: the parts have logits of different shapes.
        """
        spreads = [spread(parts[name], rows) for name in self.coefficients]
        shapes = {name: tuple(parts[name].need(Signal.LOGITS).shape[1:]) for name in self.coefficients}
        if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
            raise ShapeError(
                f"fusion: the parts' logits have the shapes {shapes}; wanted the same classes, one prediction"
            )
        scaled = [z / self.temperatures.get(name, 1.0) for (z, _), name in zip(spreads, self.coefficients, strict=True)]
        logits, seen = torch.stack(scaled), torch.stack([has for _, has in spreads])
        weights = self.weights(seen, logits.dtype)
        if self.per_sample:
            trusted = trusted_coefficients(logits, weights)
            # Without the first part there is nothing to agree with.
            weights = torch.where(seen[0], trusted.to(weights.dtype), weights)
        return fused_logits(logits, weights), seen.any(0)


class Fused(TeacherBase):
    """A frozen teacher whose logits are the fused logits of its parts, which may be live or banked.

    Each part has a bank of its own, so that other coefficients need no other banks. A row has outputs if any part has.

        Fused({"cnn": Live("cnn", network), "clip": Banked(...)}, {"cnn": 0.7, "clip": 0.3})
    """

    def __init__(
        self,
        parts: Mapping[str, Teacher],
        coefficients: Mapping[str, float],
        *,
        temperatures: Mapping[str, float] | None = None,
        per_sample: bool = False,
        name: str = "fused",
    ) -> None:
        """See `Fusion`.

        Raises:
            SettingError: a coefficient or temperature is wrong, or they do not name the parts.
            ShapeError: the parts have no logits, or logits of different shapes.
        """
        for part in {*parts, *coefficients}:
            if part not in parts or part not in coefficients:
                where = "parts" if part not in parts else "coefficients"
                raise SettingError(f"{name}: {part!r} is not among the {where}; name the same parts in both")
        self.fusion = Fusion(coefficients, temperatures or {}, per_sample)
        self.name = name
        self.parts = {part: TeacherBase.of(parts[part]).select({Signal.LOGITS}) for part in coefficients}
        shapes = {part: parts[part].spec.logits for part in coefficients}
        if None in shapes.values() or len(set(shapes.values())) > 1:
            raise ShapeError(f"{name}: the parts' logits have the shapes {shapes}; wanted the same of each")
        self.modalities = tuple(dict.fromkeys(m for part in self.parts.values() for m in part.modalities))
        self.spec = OutputSpec(logits=next(iter(shapes.values())))

    @property
    def inputs_needed(self) -> tuple[str, ...]:
        """See `TeacherBase`: what the parts that are not banked read."""
        return tuple(dict.fromkeys(m for part in self.parts.values() for m in part.inputs_needed))

    def select(self, signals: Iterable[Signal]) -> "Fused":
        """The same teacher, which has logits alone.

        Raises:
            SignalError: another output is wanted.
        """
        other = [str(signal) for signal in signals if signal != Signal.LOGITS]
        if other:
            raise SignalError(
                f"{self.name!r} is fused from logits and has no {other[0]}; read it from one of its parts"
            )
        return self

    def unkeyed(self) -> list[str]:
        """See `TeacherBase`."""
        return ["its parts have banks of their own"]

    def modules(self) -> list[nn.Module]:
        """See `TeacherBase`: those of all parts."""
        return [module for part in self.parts.values() for module in part.modules()]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """The fused logits, in the rows of any part."""
        outputs = {name: part(batch) for name, part in self.parts.items()}
        logits, seen = self.fusion.logits(outputs, len(batch))
        if all(output.rows is None for output in outputs.values()):
            return Outputs(self.name, logits)
        rows = seen.nonzero().flatten()
        return Outputs(self.name, logits[rows], rows=rows)
