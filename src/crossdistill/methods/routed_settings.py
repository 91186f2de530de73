"""Settings of multi-distillation: layers, heads, routing of rows, and the loss."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.losses.hidden_states import HiddenLoss
from crossdistill.method import MethodConfig
from crossdistill.methods.domain_routing import Routing
from crossdistill.nets.feature_translators import TranslatorKind
from crossdistill.nets.standardisation import Standardise


class RoutedSettings(MethodConfig):
    """The fields of `MultiDistillation`."""

    added: ClassVar[frozenset[str]] = frozenset({"untaught", "soft_by", "student_heads", "losses"})

    layers: Mapping[str, tuple[int | str, ...]] = Field(default_factory=dict)
    """The layers of each teacher, by number (4: the tap `layer4`) or name; default: 4, 8, 12 or the nearest thirds."""
    taps: tuple[str, ...] = ()
    """The student's layer that all heads read, or one for each layer of the teachers; default: its last one."""
    student_heads: Mapping[str, str] = Field(default_factory=dict)
    """For some teachers, the student's own prediction: one of its taps, or `embedding`. It has the width of the
    teacher's one layer, and the saved student contains it; other teachers have a translator outside of the student."""
    translator: TranslatorKind = "lconv"
    """The head of each teacher; `hybrid` is lconv for the teachers in `convolution` and mlp for the others."""
    convolution: tuple[str, ...] | None = None
    """Teachers with convolutions in a hybrid; None: all but the first."""
    domains: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """The domains of rows that each teacher teaches; default: the one that has the teacher's name."""
    untaught: tuple[str, ...] = ()
    """Domains whose rows have no teacher on purpose; a domain without teacher is refused otherwise."""
    routing: Routing = "hard"
    """The rows that a teacher teaches: those of its domains (hard), all of them (all), or all with weights (soft)."""
    soft_by: Literal["classifier", "confidence"] = "classifier"
    """Soft weights from a small classifier of domains, or from how well a row fits each teacher (all teachers run)."""
    sharpness: float = Field(1.0, gt=0)
    """Multiplies the log-odds of soft routing (dimensionless)."""
    least_weight: float = Field(0.01, ge=0, lt=1)
    """Soft routing leaves a teacher out of the rows in which its weight is below this one."""
    teacher_weights: Mapping[str, float] = Field(default_factory=dict)
    """The weight of each teacher's term; default: 1."""
    loss: Literal["l1", "l2", "barlow", "usad", "cosine", "bernoulli"] = "l1"
    """The loss of each teacher, unless `losses` has another; `barlow` is that of arXiv 2505.13270 and compares rows."""
    losses: Mapping[str, HiddenLoss] = Field(default_factory=dict)
    """The loss of some teachers, where it is not `loss`; cosine is 1 - cos alone, bernoulli is for a teacher that gives
    probabilities, of which the prediction is the logits."""
    cosine: float = Field(1.0, ge=0)
    """Weight of the term of the angle in l1, l2, usad and barlow."""
    normalise: Literal["teacher", "batch"] = "teacher"
    """Divide a teacher's loss by its rows in the whole step (as published), or by all rows of the step. Soft routing
    always divides by all rows, since a row's weights add up to 1; with routing=all, the two are the same."""
    standardise: Standardise = "none"
    """Standardisation of teachers' layers, by statistics of the training rows: none (as published), z-score, phi-s."""
    frame_rates: Mapping[str, float] = Field(default_factory=dict)
    """Frames per second of teachers and "student", where they differ: layers are interpolated to the student's."""
    drop: float = Field(0.0, ge=0, lt=1)
    """Probability that a teacher is left out of a step; at least one stays."""
    drop_seed: int = Field(0, ge=0)
    """Seed of the choice of teachers that a step leaves out."""
    across: float = Field(5e-5, ge=0)
    """Weight, in the loss `barlow`, of the correlations of predicted channels with other channels of the teacher."""
    within: float = Field(5e-6, ge=0)
    """Weight, in the loss `barlow`, of the correlations of predicted channels with each other."""
    bins: int = Field(150, ge=1)
    """Frames to which each row is pooled in the loss `barlow`, at most."""
