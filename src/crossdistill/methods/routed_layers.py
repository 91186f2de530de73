"""Layers of one teacher beside their predictions, on the rows that it teaches; and the heads that predict them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.losses.hidden_states import pooled_frames, valid_frames
from crossdistill.method import STUDENT, Progress
from crossdistill.methods.domain_routing import WHO, Layers, frames_of, row_features, rows_of, shape_of
from crossdistill.nets.feature_translators import LAYERWISE, TranslatorKind, feature_translator
from crossdistill.nets.standardisation import Moments, Standardise
from crossdistill.nets.teacher_head import OwnHead, TeacherHead, frames_differ
from crossdistill.nets.translators import by_position, grid_of, width_of
from crossdistill.outputs import Outputs, OutputSpec, Signal, picked, shared_rows
from crossdistill.runtime.hashing import derived_seed
from crossdistill.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Compared:
    """One teacher's layers (R, N, T, D) and their predictions, on the R rows of a batch that it teaches.

    `valid` (R, T) are the frames that both networks have (None: all); `weight` (R,) is that of soft routing.
    """

    name: str
    rows: Tensor
    weight: Tensor | None
    prediction: Tensor
    target: Tensor
    valid: Tensor | None


def compared(
    name: str,
    rows: Tensor,
    weight: Tensor | None,
    head: TeacherHead,
    layers: tuple[tuple[Signal, ...], tuple[Signal, ...]],
    batch: Batch,
    outputs: Outputs,
    sources: tuple[Teacher, Teacher],
    ran: Outputs | None = None,
) -> Compared:
    """Run a teacher on these rows of a batch alone, and predict its layers from the student's outputs of the batch.

    `layers` are those of the student and of the teacher, and `sources` these two; without rows, the teacher does not
    run, nor where it `ran` on the batch.
    """
    student, teacher = sources
    reads, gives = layers
    part = batch.select(rows)
    if ran is not None:
        theirs = of_rows(ran, rows, gives)
    elif len(rows):
        theirs = teacher(part)
    else:
        theirs = teacher.spec.no_rows(name, gives, torch.zeros((), device=batch.ids.device))
    inside = torch.arange(len(part), device=rows.device) if theirs.rows is None else theirs.rows
    here, there, shared = shared_rows(outputs, replace(theirs, rows=rows[inside]))
    assert shared is not None
    mine = [picked(outputs.need(signal), here) for signal in reads]
    states = [picked(theirs.need(signal), there).detach() for signal in gives]
    known = part.select(inside if there is None else inside[there])
    total = by_position(mine[0]).shape[1]
    frames, reached = frames_of(student, known, total), frames_of(teacher, known, by_position(states[0]).shape[1])
    if head.summary:
        seen = None if frames is None else valid_frames(frames, total)
        mine = [pooled_frames(by_position(one).unsqueeze(1), seen, 1).squeeze(1) for one in mine]
        frames, total = None, 1
    target = head.standard(head.at_student(states, reached, total))
    most = target.shape[2]
    prediction = head(mine, None if frames is None else valid_frames(frames, total))[:, :, :most]
    if reached is not None:
        # A student of inputs of one length has no padding, and frames behind the end of the teacher's clip.
        there = head.student_frames(reached)
        frames = there if frames is None else torch.minimum(frames, there)
    valid = None if frames is None else valid_frames(frames, most)
    return Compared(name, shared, None if weight is None else weight[shared], prediction, target, valid)


def of_rows(outputs: Outputs, rows: Tensor, signals: Sequence[Signal]) -> Outputs:
    """A batch's outputs in some of its rows, whose numbers are then places among these rows."""
    have = torch.arange(int(rows.max()) + 1 if len(rows) else 0, device=rows.device)
    have = have if outputs.rows is None else outputs.rows
    inside = torch.isin(rows, have)
    place = torch.searchsorted(have, rows[inside])
    features = {one.tap: outputs.need(one)[place] for one in signals if one.kind == "feature"}
    embedding = outputs.need(Signal.EMBEDDING)[place] if Signal.EMBEDDING in signals else None
    return Outputs(outputs.source, embedding=embedding, features=features, rows=inside.nonzero().flatten())


@torch.no_grad()
def add_moments(moments: Sequence[Moments], teacher: Teacher, layers: Sequence[Signal], batch: Batch) -> None:
    """Add a teacher's layers to the sums of each of them, over valid frames."""
    outputs = teacher(batch)
    known = batch if outputs.rows is None else batch.select(outputs.rows)
    for sums, signal in zip(moments, layers, strict=True):
        states = by_position(outputs.need(signal))
        frames = frames_of(teacher, known, states.shape[1])
        kept = states if frames is None else states[valid_frames(frames, states.shape[1])].unsqueeze(0)
        sums.add(kept)


@torch.no_grad()
def add_rows(
    moments: tuple[Moments, Moments],
    teacher: Teacher,
    layers: Sequence[Signal],
    batch: Batch,
    domains: Sequence[str],
) -> None:
    """Add a teacher's mean features of rows to the sums of its own domains, or to those of others."""
    feature, rows = row_features(teacher, teacher(batch), layers, batch)
    own = torch.isin(rows, rows_of(domains, batch))
    for sums, kept in zip(moments, (own, ~own), strict=True):
        sums.add(feature[kept].unsqueeze(1))


def heads_for(
    kinds: Mapping[str, TranslatorKind],
    layers: Layers,
    specs: Mapping[str, OutputSpec],
    rates: Mapping[str, float],
    standardise: Standardise,
) -> dict[str, TeacherHead]:
    """The head of each teacher in `kinds`; `layers` and `specs` are those of the student (STUDENT) and the teachers.

    Raises:
        ApplicabilityError: networks give other numbers of frames for one input; names both.
        SettingError: the kind does not suit the layers.
    """
    mine = shape_of(specs[STUDENT], layers[STUDENT][-1], STUDENT)
    width, heads = width_of(mine), dict[str, TeacherHead]()
    shared: nn.Module | None = None
    for number, (name, kind) in enumerate(kinds.items()):
        theirs = shape_of(specs[name], layers[name][-1], f"teacher {name!r}")
        ratio = _ratio(name, rates)
        summary = is_summary(mine, theirs)
        if not summary:
            _check_frames(name, mine, theirs, ratio)
        out, count = width_of(theirs), len(layers[name])
        if len(layers[STUDENT]) > 1 and (kind not in LAYERWISE or len(layers[STUDENT]) != count):
            raise SettingError(
                f"{WHO}: taps names {len(layers[STUDENT])} layers of the student, one for each of the {count} of "
                f"teacher {name!r}; name as many, with translator {' or '.join(LAYERWISE)} (found {kind}), or one"
            )
        channels = slice(number * (width // len(kinds)), (number + 1) * (width // len(kinds)))
        channels = channels if kind == "half" else slice(0, width)
        if kind == "shared":
            shared = feature_translator(kind, width, out, count) if shared is None else shared
            _check_shared(name, kinds, layers, specs)
        translator = feature_translator(kind, channels.stop - channels.start, out, count) if shared is None else shared
        heads[name] = TeacherHead(translator, channels, ratio, standardise, out, count, summary=summary)
    return heads


def own_head(
    name: str, signal: Signal, layers: tuple[Signal, ...], specs: Mapping[str, OutputSpec], rates: Mapping[str, float]
) -> TeacherHead:
    """The head of a teacher whose layer the student's output `signal` predicts without a translator.

    Raises:
        SignalError: the student has no such output.
        ApplicabilityError: widths or numbers of frames differ, or the teacher has several layers; names both.
    """
    if signal == Signal.EMBEDDING and specs[STUDENT].embedding is None:
        raise ApplicabilityError(f"{WHO}: student_heads.{name} is 'embedding', and the student gives none; name a tap")
    mine = shape_of(specs[STUDENT], signal, STUDENT)
    theirs = shape_of(specs[name], layers[-1], f"teacher {name!r}")
    if len(layers) != 1 or width_of(mine) != width_of(theirs):
        raise ApplicabilityError(
            f"{WHO}: student_heads.{name}: the student's {signal} of shape {mine} stands for one layer of the same "
            f"width, and teacher {name!r} has {len(layers)} of shape {theirs}; name that layer in layers.{name}, or "
            f"leave student_heads.{name} out"
        )
    ratio, summary = _ratio(name, rates), is_summary(mine, theirs)
    if not summary:
        _check_frames(name, mine, theirs, ratio)
    width = width_of(mine)
    return TeacherHead(OwnHead(), slice(0, width), ratio, "none", width, 1, summary=summary)


def is_summary(mine: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether a teacher's layer is one vector for a row, where the student's has positions."""
    return len(theirs) == 1 < len(mine)


def _ratio(name: str, rates: Mapping[str, float]) -> float:
    if name in rates and STUDENT in rates:
        return rates[name] / rates[STUDENT]
    if name in rates:
        raise SettingError(f"{WHO}: frame_rates names teacher {name!r} and not {STUDENT!r}; give both, in Hz")
    return 1.0


def _check_frames(name: str, mine: tuple[int, ...], theirs: tuple[int, ...], ratio: float) -> None:
    counts = [torch.Size(grid_of(shape)).numel() if len(shape) > 1 else 1 for shape in (mine, theirs)]
    if frames_differ(counts[0], counts[1], ratio):
        scaled = "" if ratio == 1 else f", {counts[1] / ratio:.0f} at the student's rate"
        raise ApplicabilityError(
            f"{WHO}: for one input the student gives {counts[0]} frames {mine} and teacher {name!r} {counts[1]} frames "
            f"{theirs}{scaled}; two frames more or less are cut. If their rates differ, set frame_rates="
            f"{{student: HZ, {name}: HZ}}; else name layers of equal frames in layers and taps"
        )


def _check_shared(name: str, kinds: Mapping[str, str], layers: Layers, specs: Mapping[str, OutputSpec]) -> None:
    sizes = {one: (width_of(shape_of(specs[one], layers[one][-1], one)), len(layers[one])) for one in kinds}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{one}: {count} layers of width {width}" for one, (width, count) in sizes.items())
        raise SettingError(
            f"{WHO}: translator 'shared' predicts one result for all teachers, which differ ({shown}); choose 'mlp'"
        )


def kept_teachers(names: Sequence[str], drop: float, seed: int, progress: Progress) -> list[str]:
    """The teachers of a step, at least one: the same on every rank and in every micro-batch, and after a resume."""
    source = torch.Generator().manual_seed(derived_seed("dropped domains", seed, progress.epoch, progress.step))
    drawn = torch.rand(len(names), generator=source).tolist()
    limit = min(drop, max(drawn))
    return [name for name, number in zip(names, drawn, strict=True) if number >= limit]
