"""The check that student and teachers give logits over the same classes, and the advice where they do not."""

from collections.abc import Mapping

from crossdistill.errors import ApplicabilityError
from crossdistill.outputs import OutputSpec

ON_FEATURES = ("at", "crd", "hint", "kdsvd", "nst", "ofd", "pkt", "reviewkd", "rkd", "sp", "translate", "vid")
"""Methods that compare features only and do not use the teachers' logits."""

FOR_ANY_TARGETS = tuple(name for name in ON_FEATURES if name != "crd")
"""Those of them that read no classes; crd draws its negatives by class."""


def require_same_logits(method: str, student: OutputSpec, teachers: Mapping[str, OutputSpec], fewest: int = 2) -> None:
    """Refuse networks without logits, with logits of other shapes, or of fewer classes than `fewest`.

    Raises:
        ApplicabilityError: no teacher, no logits, different shapes (names the network), or a single class.
    """
    if not teachers:
        raise ApplicabilityError(f"{method} needs at least one teacher; this stage has none")
    if student.logits is None:
        raise ApplicabilityError(f"{method} distils logits, and the student gives none")
    for name, spec in teachers.items():
        if spec.logits != student.logits:
            raise ApplicabilityError(
                f"{method}: teacher {name!r} gives logits of shape {spec.logits}, the student {student.logits} "
                f"(classes first, without the batch); they have to be the same. {_cure(name, spec, student)}"
            )
    if student.classes < fewest:
        raise ApplicabilityError(
            f"{method} distils how probable each class is, and with {student.classes} class that is always 1; take a "
            f"method that compares features ({', '.join(ON_FEATURES)})"
        )


def _cure(name: str, teacher: OutputSpec, student: OutputSpec) -> str:
    """The advice for a teacher whose logits have another shape."""
    features = f"take a method that compares features and reads no logits of teachers ({', '.join(ON_FEATURES)})"
    mapped = teacher.logits is not None and student.logits is not None and teacher.logits[1:] == student.logits[1:]
    if not mapped or teacher.classes < student.classes:
        return f"To keep this teacher, {features}"
    return (
        f"If the student's {student.classes} classes are among the teacher's {teacher.classes}, map them: wrap "
        f"{name!r} in Network(module, reads, output_adapter=lambda z: {{'logits': z[:, ids]}}), where ids are its "
        f"numbers of the student's classes, in the student's order. Else {features}"
    )
