"""Teachers by the domains of rows, and the layers of teachers that a method reads: checks before training."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.losses.hidden_states import valid_frames
from crossdistill.method import STUDENT, module_key
from crossdistill.methods.layer_choice import chosen
from crossdistill.nets.domain_classifier import DomainClassifier, lengths_of, row_statistics
from crossdistill.nets.own_domain import mean_position
from crossdistill.nets.teacher_head import CUT
from crossdistill.nets.translators import by_position
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher

WHO = "multi-distillation"
Routing = Literal["hard", "soft", "all"]
"""hard: a row supervises the teachers of its domain; soft: each row weighs every teacher; all: no domains."""
Layers = Mapping[str, tuple[Signal, ...]]


def check_names(settings: Mapping[str, Sequence[str]], teachers: Sequence[str]) -> None:
    """Refuse settings by teacher that name no teacher.

    Raises:
        SettingError: there is one; names the setting and the nearest teacher.
    """
    for setting, names in settings.items():
        for name in names:
            known = [*teachers, *([STUDENT] if setting == "frame_rates" else [])]
            if name not in known:
                raise SettingError(f"{WHO}: {setting}: no teacher is called {name!r}; {nearest(name, known)}")


def routes(
    domains: Mapping[str, tuple[str, ...]],
    teachers: Sequence[str],
    known: Sequence[str] | None,
    untaught: Sequence[str] = (),
) -> dict[str, tuple[str, ...]]:
    """The domains of each teacher: its own name, unless `domains` says otherwise.

    `known` are those of the data, `untaught` those whose rows have no teacher on purpose.

    Raises:
        SettingError: a teacher without rows, or a domain without teacher; names both sides.
    """
    found = {name: tuple(domains.get(name, (name,))) for name in teachers}
    if known is None:
        return found
    for name, own in found.items():
        missing = [domain for domain in own if domain not in known]
        if missing or not own:
            what = f"the domain {missing[0]!r}, which no row has; {nearest(missing[0], known)}" if missing else "none"
            raise SettingError(
                f"{WHO}: teacher {name!r} teaches {what}. Set domains.{name} to domains of the data "
                f"({', '.join(known)}), or leave the teacher out"
            )
    for domain in untaught:
        teaching = [name for name, own in found.items() if domain in own]
        if domain not in known or teaching:
            what = f"teacher {teaching[0]!r} teaches it" if teaching else nearest(domain, known)
            raise SettingError(f"{WHO}: untaught names the domain {domain!r}: {what}")
    for domain in known:
        if domain not in untaught and not any(domain in own for own in found.values()):
            raise SettingError(
                f"{WHO}: rows of the domain {domain!r} have no teacher; the teachers' domains are "
                f"{', '.join(f'{name}: {list(own)}' for name, own in found.items())}. Add {domain!r} to one of them "
                "(domains.TEACHER), give a teacher of that name, leave the rows out (data.domains, or untaught for "
                "this stage alone), or set routing=all"
            )
    return found


def rows_of(domains: Sequence[str], batch: Batch) -> Tensor:
    """The rows of a batch whose domain is one of these.

    Raises:
        SettingError: the data have no domains.
    """
    if batch.domain is None:
        raise SettingError(
            f"{WHO}: the rows of these data have no domain; give one (the column `domain` of a manifest, "
            "Dataset.from_arrays(domain=...), domain= of a Distiller's call), or set routing=all"
        )
    found = [row for row, domain in enumerate(batch.domain) if domain in domains]
    return torch.tensor(found, dtype=torch.long, device=batch.ids.device)


def check_taught(domains: Mapping[str, Sequence[str]], untaught: Sequence[str], batch: Batch) -> None:
    """Check that each row of a batch has a teacher; a plan knows that before training, a loop of one's own does not.

    Raises:
        SettingError: a row's domain has none; names it.
    """
    taught = {*untaught, *(domain for own in domains.values() for domain in own)}
    alone = next((domain for domain in batch.domain or () if domain not in taught), None)
    if alone is not None:
        raise SettingError(
            f"{WHO}: a row of the batch is of the domain {alone!r}, which has no teacher; {nearest(alone, taught)}. "
            "Add it to a teacher's domains, or to untaught"
        )


def rows_in_step(domains: Sequence[str], batch: Batch) -> int:
    """The rows of these domains in the whole step, over all ranks and micro-batches; of this batch, if not known."""
    if batch.domain_rows is not None:
        return sum(batch.domain_rows.get(domain, 0) for domain in domains)
    return sum(domain in domains for domain in batch.domain or ())


def layers_of(spec: OutputSpec, who: str, wanted: Sequence[int | str] | None) -> tuple[Signal, ...]:
    """The named layers of a network (a number i is the tap `layer<i>`), or by default those at each third.

    Of 12 numbered blocks, these are 4, 8 and 12. Layers of another shape than the last one are no default.

    Raises:
        SignalError: there is no such layer.
        ApplicabilityError: the network has neither layers nor an embedding, or the named ones differ in shape.
    """
    if wanted is not None:
        signals = tuple(Signal.feature(f"layer{one}" if isinstance(one, int) else one) for one in wanted)
        shapes = {spec.feature(signal.tap, who) for signal in signals}
        if len({(shape[-1], len(shape)) for shape in shapes}) != 1:
            raise ApplicabilityError(f"{WHO}: the layers of {who} need one width each, found {sorted(shapes)}")
        return signals
    numbered = {tap: shape for tap, shape in spec.features.items() if re.fullmatch(r"layer\d+", tap)}
    features = {Signal.feature(tap): shape for tap, shape in numbered.items()} or chosen("all", spec)
    if not features:
        if spec.embedding is None:
            raise ApplicabilityError(f"{WHO}: {who} has no layers and no embedding to compare; give it taps")
        return (Signal.EMBEDDING,)
    last = list(features.values())[-1]
    alike = [signal for signal, shape in features.items() if shape == last]
    places = sorted({max(1, round(len(alike) * part / 3)) for part in (1, 2, 3)})
    return tuple(alike[place - 1] for place in places)


def shape_of(spec: OutputSpec, signal: Signal, who: str) -> tuple[int, ...]:
    """The shape of a layer, without the batch."""
    if signal == Signal.EMBEDDING:
        assert spec.embedding is not None
        return spec.embedding
    return spec.feature(signal.tap, who)


def frames_of(source: Teacher, batch: Batch, total: int) -> Tensor | None:
    """The valid frames of each row in a layer of `total` frames; None: all of them are valid.

    Raises:
        ApplicabilityError: rows are padded, and the network does not say which of its frames are padding; or a row is
            longer than the window that the network reads.
    """
    seen = source.sees(batch)
    lengths = next(
        (found for name in source.modalities if (found := lengths_of(seen.inputs.get(name))) is not None), None
    )
    if lengths is None or total == 1:
        return None
    network = getattr(source, "network", None)
    frames = getattr(network, "frames", None) or getattr(getattr(network, "module", None), "frames", None)
    found = None if frames is None else frames(lengths)
    if isinstance(found, Tensor):
        if len(found) and int(found.max()) > total + CUT:
            raise ApplicabilityError(
                f"{WHO}: a row of {int(lengths.max()):,} samples has {int(found.max())} frames of {source.name!r}, and "
                f"its layer gives {total}; crop rows to its window (data.crop_seconds), or name other layers"
            )
        return found.clamp(0, total)
    padded = next(
        value.shape[1]
        for name in source.modalities
        if isinstance(given := seen.inputs.get(name), Mapping)
        for value in given.values()
        if value.ndim > 1
    )
    if padded == total:
        return lengths
    if bool((lengths == padded).all()):
        return None
    raise ApplicabilityError(
        f"{WHO}: rows are padded to {padded} values, and {source.name!r} gives {total} frames without saying which are "
        "padding; give its module a method frames(lengths) that returns the valid frames, or crop rows to one length"
    )


def statistics_of(batch: Batch, student: Teacher) -> Tensor:
    """Statistics of the student's input, from which domains are told apart."""
    # Absent inputs may hold NaN; the student has no outputs in these rows.
    return row_statistics(batch.read(student.modalities[0], "soft routing")).nan_to_num()


def domain_weights(
    classifier: DomainClassifier,
    batch: Batch,
    student: Teacher,
    domains: Mapping[str, tuple[str, ...]],
    sharpness: float,
) -> Mapping[str, Tensor]:
    """Each teacher's weight in each row (B,), which add up to 1: the probabilities of its domains."""
    likely = classifier(statistics_of(batch, student), sharpness)
    of = {domain: likely[:, number] for number, domain in enumerate(classifier.domains)}
    # Teachers of one domain share it.
    sharing = {domain: sum(domain in own for own in domains.values()) for domain in of}
    return {name: torch.stack([of[one] / sharing[one] for one in own]).sum(0) for name, own in domains.items()}


def confidence_weights(
    own: nn.ModuleDict,
    batch: Batch,
    ran: Mapping[str, Outputs],
    teachers: Mapping[str, Teacher],
    layers: Layers,
    sharpness: float,
) -> Mapping[str, Tensor]:
    """Each teacher's weight in each row (B,): softmax over teachers of `sharpness · log-odds` (`OwnDomain`).

    They add up to 1, except in rows that no teacher can read. `ran` are the teachers' outputs for the batch.
    """
    odds = torch.full((len(ran), len(batch)), -torch.inf, device=batch.ids.device)
    for number, (name, outputs) in enumerate(ran.items()):
        feature, rows = row_features(teachers[name], outputs, layers[name], batch)
        odds[number, rows] = own[module_key(name)](feature).to(odds)
    # The smallest finite value, since a row of infinite values alone would give NaN.
    scores = (sharpness * odds).clamp_min(torch.finfo(odds.dtype).min)
    weights = torch.softmax(scores, 0).where(odds.isfinite(), 0.0)
    return dict(zip(ran, weights, strict=True))


def row_features(teacher: Teacher, outputs: Outputs, layers: Sequence[Signal], batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean of a teacher's last layer over valid positions (R, D), and the rows of the batch that it has."""
    feature = by_position(outputs.need(layers[-1]))
    rows = torch.arange(len(batch), device=batch.ids.device) if outputs.rows is None else outputs.rows
    frames = frames_of(teacher, batch if outputs.rows is None else batch.select(rows), feature.shape[1])
    return mean_position(feature, None if frames is None else valid_frames(frames, feature.shape[1])), rows
