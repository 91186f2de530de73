"""RichKD: a trained teacher and a vision-language model, fused (arXiv 2511.09286, CVPR 2026 Findings)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.bank.fused import Fusion
from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.losses.kl import distillation_kl
from crossdistill.losses.standardise import standardised
from crossdistill.method import STUDENT, DataSpec, Method, Progress, Step, Term, task_term
from crossdistill.methods.feature_method import FeatureConfig, vector_size
from crossdistill.methods.layer_choice import Pairs
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.nets.contrast import Draw, Kind, comparison
from crossdistill.nets.fused_embedding import FusedEmbedding
from crossdistill.nets.projector import UnitEmbedding
from crossdistill.outputs import Outputs, OutputSpec, Signal, picked
from crossdistill.teacher import Teacher


class RichKDConfig(FeatureConfig):
    """Settings of RichKD; the defaults are the released values. A weight of 0 leaves its branch out."""

    alpha: float = Field(0.7, ge=0, le=1)
    """Coefficient of the main teacher's logits; the other teachers share the rest equally."""
    alpha_features: float | None = Field(None, ge=0, le=1)
    """The same of the embeddings; None: as `alpha`, as in the released code. The paper has a coefficient of its own."""
    main: str | None = None
    """Name of the main teacher; None: the first one."""
    coefficients: Mapping[str, float] = Field(default_factory=dict)
    """By teacher, instead of `alpha`; scaled to sum 1."""
    temperatures: Mapping[str, float] = Field(default_factory=dict)
    """By teacher: what its logits are divided by before they are fused (dimensionless, above 0)."""
    per_sample: bool = False
    """In each row, trust the other teachers as far as they are confident and agree with the main one."""
    temperature: float = Field(3.0, gt=0)
    """Temperature of the fused and of the student's prediction (dimensionless)."""
    standardise: bool = False
    """Replace each row's fused and student logits by z-scores first (Sun et al., CVPR 2024)."""
    weight_task: float = Field(1.0, ge=0)
    weight_logits: float = Field(3.0, ge=0)
    weight_features: float = Field(0.8, ge=0)
    feature_loss: Kind = "crd"
    """Comparison of embeddings: "crd" (memory), "infonce" (rows of the step), "queue" (the teacher's last vectors), or
    the own row alone. mse and cosine fix the teachers' maps, which would become constant."""
    width: int = Field(128, ge=1)
    negatives: int = Field(16384, ge=1)
    """Negatives of crd, and the length of the queue."""
    draw: Draw = "shared"
    """crd draws negatives once for the rows of a step, or for "each" row by itself, as released."""
    contrast_temperature: float = Field(0.07, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1)
    """Momentum of the memory's updates (dimensionless)."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds maps and a comparison of embeddings only with `weight_features`; reads logits only with that weight.

        Raises:
            ApplicabilityError: one teacher, other classes, dense logits, one class to contrast, or no embedding.
            SettingError: a setting names no teacher.
        """
        if student.logits is None or len(student.logits) > 1:
            raise ApplicabilityError(f"{self.name} needs one prediction a row; the student's is {student.logits}")
        if len(teachers) < 2:
            raise ApplicabilityError(
                f"{self.name} fuses two or more teachers, and this stage has {', '.join(teachers) or 'none'}; name "
                "another, such as a model that compares its inputs with texts: --set teachers.clip=transformers:FOLDER"
            )
        if self.weight_logits:
            require_same_logits(self.name, student, teachers)
        pairs = self.pairs("vector", student, teachers) if self.weight_features else {}
        contrasts = bool(pairs) and self.feature_loss in ("crd", "infonce", "queue")
        return (_Contrasted if contrasts else _RichKD)(self, tuple(teachers), pairs, data)

    def fusion(self, teachers: tuple[str, ...], *, features: bool = False) -> Fusion:
        """The coefficients of these teachers, the main one first.

        Raises:
            SettingError: a setting names none of them.
        """
        for name in (*self.coefficients, *self.temperatures, *([self.main] if self.main else [])):
            if name not in teachers:
                raise SettingError(f"{self.name}: no teacher {name!r}; {nearest(name, teachers)}")
        main = self.main or teachers[0]
        names = (main, *(name for name in teachers if name != main))
        alpha = self.alpha if self.alpha_features is None or not features else self.alpha_features
        rest = (1 - alpha) / max(1, len(names) - 1)
        constant = {name: alpha if name == main else rest for name in names}
        own = {name: self.coefficients.get(name, 0.0) for name in names}
        return Fusion(own if self.coefficients else constant, self.temperatures, self.per_sample)


class RichKD(RichKDConfig):
    """`1 · CE + 3 · T² · KL(α · z_T + (1 - α) · z_C ‖ z_S) + 0.8 · CRD(student, fused embedding)`, with T = 3, α = 0.7.

    Each embedding has a trained linear map to unit vectors of 128 numbers; the teachers' are summed with α and
    normalised again.
    """

    name: Literal["richkd"] = "richkd"


class RichKDL(RichKDConfig):
    """`1 · CE + 3 · T² · KL(α · z_T + (1 - α) · z_C ‖ z_S)`: RichKD on logits alone, without a memory."""

    name: Literal["richkd-l"] = "richkd-l"
    weight_features: float = Field(0.0, ge=0)


class RichKDF(RichKDConfig):
    """`1 · CE + 0.8 · CRD(student, fused embedding)`: RichKD on embeddings alone, without the teachers' logits."""

    name: Literal["richkd-f"] = "richkd-f"
    weight_logits: float = Field(0.0, ge=0)


class _RichKD(Method):
    def __init__(self, config: RichKDConfig, teachers: tuple[str, ...], pairs: Pairs, data: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.labelled_fraction = data.labelled_fraction
        self.fusion = config.fusion(teachers)
        self.of_features = config.fusion(teachers, features=True)
        self.pairs = {name: pairs[name][-1] for name in self.fusion.coefficients if name in pairs}
        self.row_of: Tensor
        if not pairs:
            return
        last = next(iter(self.pairs.values()))
        sizes = [vector_size(pair.theirs, "mean") for pair in self.pairs.values()]
        self.mine = UnitEmbedding(vector_size(last.mine, "mean"), config.width)
        self.theirs = FusedEmbedding(sizes, config.width, trains=isinstance(self, _Contrasted))
        labels = torch.full((data.rows,), MISSING_TARGET) if data.targets is None else data.targets.cpu()
        contrast = (config.negatives, config.contrast_temperature, config.momentum, config.draw)
        self.comparison = comparison(config.feature_loss, labels, config.width, *contrast)
        ids = torch.arange(data.rows) if data.ids is None else data.ids.cpu()
        row_of = torch.zeros(int(ids.max()) + 1, dtype=torch.int64).index_copy(0, ids, torch.arange(len(ids)))
        self.register_buffer("row_of", row_of, persistent=False)

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        logits, mine = {Signal.LOGITS} if self.config.weight_logits else set(), {p.student for p in self.pairs.values()}
        theirs = {name: {self.pairs[name].teacher} if self.pairs else set() for name in self.fusion.coefficients}
        needs = {name: frozenset(logits | signals) for name, signals in theirs.items()}
        return {STUDENT: frozenset({Signal.LOGITS, *mine}), **needs}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        """Runs student and teachers once each; returns the terms whose weight is not 0."""
        config, terms, stash = self.config, {}, dict[str, Tensor]()
        outputs = student(batch)
        with torch.no_grad():
            parts = {name: teachers[name](batch) for name in self.fusion.coefficients}
        if config.weight_task:
            terms["task"] = task_term(outputs, batch, fraction=self.labelled_fraction, weight=config.weight_task)
        if config.weight_logits:
            fused, seen = self.fusion.logits(parts, len(batch))
            mine, theirs = outputs.need(Signal.LOGITS), outputs.of(fused)
            if config.standardise:
                mine, theirs = standardised(mine), standardised(theirs)
            rows = distillation_kl(mine, theirs, config.temperature)
            terms[f"{config.name}/logits"] = Term(rows.where(outputs.of(seen), 0.0), config.weight_logits)
        if config.weight_features:
            term, stash = self._features(batch, outputs, parts, progress)
            terms[f"{config.name}/features"] = replace(term, weight=config.weight_features)
        return Step(terms, outputs, stash=stash)

    def _features(
        self, batch: Batch, student: Outputs, parts: Mapping[str, Outputs], progress: Progress
    ) -> tuple[Term, dict[str, Tensor]]:
        """The loss of the rows that the student and any teacher have, and what the comparison keeps of them."""
        features = [(parts[name].need(pair.teacher).detach(), parts[name].rows) for name, pair in self.pairs.items()]
        seen = torch.ones((len(features), len(batch)), dtype=torch.bool, device=batch.ids.device)
        for number, (_, rows) in enumerate(features):
            if rows is not None:
                seen[number] = torch.zeros_like(seen[number]).index_fill(0, rows, True)
        weights = self.of_features.weights(seen, features[0][0].dtype)
        fused = self.theirs(features, weights)
        mine = self.mine(student.need(next(iter(self.pairs.values())).student))
        # Positions, among the student's rows, of those that a teacher has too; None: all of them.
        whole = all(rows is None for _, rows in features)
        both = None if whole else student.of(seen.any(0)).nonzero().flatten()
        index = picked(self.row_of[student.of(batch.ids)], both)
        sides = picked(mine, both), picked(student.of(fused), both)
        step = progress.epoch * progress.steps + progress.step
        loss, stash = self.comparison(index, *sides, step, progress.gather)
        return Term(loss), stash

    def after_step(self, batch: Batch, step: Step) -> None:
        if step.stash:
            self.comparison.move(step.stash)


class _Contrasted(_RichKD):
    """Compares rows with each other, so that the rows of all ranks are gathered."""

    batch_relational: ClassVar[bool] = True
