"""Feature translation: the student's embedding and layers learn those of any number of teachers, without labels.

The forms are those of RADIO (CVPR 2024, arXiv 2312.06709), Theia (2407.20179) and PHI-S (ICLR 2025, 2410.01680).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch, Task
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.losses.task import EVERY_TASK
from crossdistill.losses.translate import Distance, feature_distance
from crossdistill.method import STUDENT, DataSpec, Method, Progress, Step, module_key
from crossdistill.methods.feature_method import FeatureConfig, PairedFeatures, paired_features, signals_of
from crossdistill.methods.layer_choice import Pair, Pairs, chosen
from crossdistill.nets.standardisation import Moments, Standardise
from crossdistill.nets.translators import Head, Translation
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.runtime.hashing import derived_seed
from crossdistill.teacher import Teacher


class Translate(FeatureConfig):
    """`Σ over teachers, of the summary and of patches, of distance(head(student), standardised teacher)`.

    The summary is the embedding, or else the last tap, averaged over its positions. Patches are the layers named in
    `taps` and `teacher_taps` (`()`: none), by default the last spatial one of each network. A feature of three
    dimensions is tokens (B, T, D), one of four a map (B, C, H, W).
    """

    name: Literal["translate"] = "translate"
    summary: bool = True
    """Whether the embeddings are compared."""
    head: Head = "mlp"
    """Translator of each pair of features: linear, mlp, conv, or tokens (resampling by learned queries)."""
    hidden: int | None = Field(None, ge=1)
    """Width between the layers of a translator; None: the larger of the two features' widths."""
    summary_loss: Distance = "cosine"
    patch_loss: Distance = "cosine+smooth-l1"
    cosine_share: float = Field(0.9, ge=0, le=1)
    """Weight of the cosine in `cosine+smooth-l1`; that of smooth L1 is the rest."""
    weight_summary: float = Field(1.0, ge=0)
    weight_patches: float = Field(1.0, ge=0)
    standardise: Standardise = "phi-s"
    """Standardisation of teachers' features, by statistics of the training rows: none, z-score, phi-s."""
    balance: Literal["none", "loss", "variance"] = "none"
    """Divide each teacher's loss by its running mean, or each feature's by the variance of the teacher's feature."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Momentum of the running means."""
    drop: float = Field(0.0, ge=0, lt=1)
    """Probability that a teacher is left out of a step; at least one stays."""
    drop_seed: int = Field(0, ge=0)
    prefix_tokens: Mapping[str, int] = Field(default_factory=dict)
    """Leading tokens of patches that are no patches (class tokens), by teacher or "student"."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a translator and a standardisation for every pair of features."""
        for name in self.prefix_tokens:
            if name not in {STUDENT, *teachers}:
                raise SettingError(f"translate: prefix_tokens: no {name!r}; {nearest(name, [STUDENT, *teachers])}")
        return (_BalancedByLoss if self.balance == "loss" else _Translate)(self, self.translated(student, teachers))

    def translated(self, student: OutputSpec, teachers: Mapping[str, OutputSpec]) -> dict[str, tuple[Pair, ...]]:
        """The compared features by teacher: the summary first, if there is one.

        Raises:
            ApplicabilityError: nothing is compared with a teacher.
        """
        plain = self.model_copy(update={"taps": None, "teacher_taps": {}})
        pairs = plain.pairs("vector", student, teachers) if self.summary or not teachers else {}
        for name, spec in teachers.items():
            named = [self.taps, self.teacher_taps.get(name)]
            spatial = [
                taps or chosen("maps", of, self.activation) for taps, of in ((named[0], student), (named[1], spec))
            ]
            if all(spatial) and () not in named:
                taps = {name: self.teacher_taps[name]} if name in self.teacher_taps else {}
                patches = self.model_copy(update={"teacher_taps": taps}).pairs("last", student, {name: spec})
                pairs[name] = (*pairs.get(name, ()), *patches[name])
            if name not in pairs:
                raise ApplicabilityError(
                    f"translate: nothing of teacher {name!r} is compared: summary is false, and no layers are named or "
                    "spatial on both sides; set summary=true, or name layers in taps and teacher_taps"
                )
        return pairs


class _Translate(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    judged_by_targets: ClassVar[bool] = False
    trains_logits: ClassVar[bool] = False

    def __init__(self, config: Translate, pairs: Pairs) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.translations = nn.ModuleDict()
        for name, number, pair in self._numbered():
            skipped = (config.prefix_tokens.get(STUDENT, 0), config.prefix_tokens.get(name, 0))
            self.translations[module_key(f"{name}:{number}")] = Translation(
                config.head,
                pair.mine,
                pair.theirs,
                config.standardise,
                hidden=config.hidden,
                skipped=None if self._is_summary(number) else skipped,
            )

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs)

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], student: Teacher, teachers: Mapping[str, Teacher]) -> None:
        """Measures the statistics of every teacher's features, in one pass."""
        moments = {place: Moments(self._translation(*place[:2]).standardise) for place in self._numbered()}
        for batch in batches:
            outputs = {name: teachers[name](batch) for name in self.pairs}
            for (name, number, pair), sums in moments.items():
                sums.add(self._translation(name, number).of_teacher(outputs[name].need(pair.teacher)))
        for (name, number, _), sums in moments.items():
            self._translation(name, number).standardise.settle(sums)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        distances = self._distances(self._kept(progress), batch, outputs, teachers)
        return Step({f"translate/{features.name}": features.term(rows) for features, rows in distances}, outputs)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        # All teachers, without the running means, so that epochs can be compared.
        total, count = torch.zeros(2, len(batch), device=batch.ids.device).unbind()
        for features, distance in self._distances(self.pairs, batch, student(batch), teachers):
            rows = torch.arange(len(batch), device=batch.ids.device) if features.rows is None else features.rows
            total, count = total.index_add(0, rows, distance), count.index_add(0, rows, torch.ones_like(distance))
        return {STUDENT: (total / count)[count > 0]}

    def _distances(
        self, pairs: Pairs, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]
    ) -> Iterator[tuple[PairedFeatures, Tensor]]:
        """The paired features of each teacher, and the weighted sum of their distances, one value for each row."""
        config = self.config
        for features in paired_features(pairs, student, batch, teachers):
            distances = []
            for number, (mine, theirs) in enumerate(features.pairs()):
                translation, summary = self._translation(features.name, number), self._is_summary(number)
                rows = feature_distance(
                    translation(mine),
                    translation.standardise(translation.of_teacher(theirs)),
                    config.summary_loss if summary else config.patch_loss,
                    config.cosine_share,
                )
                variance = translation.standardise.variance if config.balance == "variance" else 1.0
                distances.append(rows * (config.weight_summary if summary else config.weight_patches) / variance)
            yield features, torch.stack(distances).sum(0)

    def _numbered(self) -> list[tuple[str, int, Pair]]:
        return [(name, number, pair) for name, pairs in self.pairs.items() for number, pair in enumerate(pairs)]

    def _is_summary(self, number: int) -> bool:
        return self.config.summary and number == 0

    def _translation(self, teacher: str, number: int) -> Translation:
        translation = self.translations[module_key(f"{teacher}:{number}")]
        assert isinstance(translation, Translation)
        return translation

    def _kept(self, progress: Progress) -> Pairs:
        """The teachers of a step: the same on every rank and in every micro-batch, and after a resume."""
        seed = derived_seed("dropped teachers", self.config.drop_seed, progress.epoch, progress.step)
        drawn = torch.rand(len(self.pairs), generator=torch.Generator().manual_seed(seed)).tolist()
        limit = min(self.config.drop, max(drawn))
        return {name: pairs for (name, pairs), number in zip(self.pairs.items(), drawn, strict=True) if number >= limit}


class _BalancedByLoss(_Translate):
    """Each teacher's loss is divided by its running mean over whole batches, so the rows of all ranks are gathered."""

    batch_relational: ClassVar[bool] = True

    def __init__(self, config: Translate, pairs: Pairs) -> None:
        super().__init__(config, pairs)
        self.running: Tensor
        self.register_buffer("running", torch.zeros(len(pairs)))

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs, terms, stash = student(batch), {}, {}
        for features, rows in self._distances(self._kept(progress), batch, outputs, teachers):
            running = self.running[list(self.pairs).index(features.name)]
            terms[f"translate/{features.name}"] = features.term(rows / running.where(running > 0, 1.0))
            stash[features.name] = progress.gather(rows.detach())
        return Step(terms, outputs, stash=stash)

    def after_step(self, batch: Batch, step: Step) -> None:
        for number, name in enumerate(self.pairs):
            if name in step.stash and len(step.stash[name]):
                old, new = self.running[number], step.stash[name].mean()
                self.running[number] = torch.where(old > 0, old.lerp(new, 1 - self.config.momentum), new)
