"""Published multi-level logit distillation: two views, masks, and what the released code makes of them."""

from collections.abc import Callable, Iterable

import torch
from facts import raises
from stand_ins import SPEC, data_of, rows_of
from torch import Tensor

from crossdistill import Batch, Cut, Outputs, Progress, Signal
from crossdistill.errors import SignalError
from crossdistill.losses import class_correlation, distillation_kl, row_correlation
from crossdistill.methods.mlkd import MLKD

EVERY = (4.0, 3.0, 5.0, 2.0, 6.0)


class Seeing:
    """A source whose logits are what stands in the input "x"."""

    modalities = ("x",)
    spec = SPEC

    def __init__(self, name: str, scale: float) -> None:
        self.name, self.scale = name, scale

    def __call__(self, batch: Batch) -> Outputs:
        value = batch.read("x")
        assert isinstance(value, Tensor)
        return Outputs(self.name, logits=value[:, :4] * self.scale + value[:, 4:])

    def select(self, signals: Iterable[Signal]) -> "Seeing":
        return self

    def sees(self, batch: Batch) -> Batch:
        return batch

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        raise AssertionError(f"nobody cuts at {tap}")


def kl(one: Tensor, other: Tensor) -> Tensor:
    return torch.stack([distillation_kl(one, other, t) for t in EVERY]).sum(0)


def masks(teacher: Tensor) -> tuple[Tensor, Tensor]:
    sure = teacher.softmax(1)
    highest, by_class = sure.amax(1), sure.sum(0)
    return (highest <= highest.quantile(0.5)).float(), (by_class <= by_class.quantile(0.5)).float()


def terms_of(**settings: object) -> tuple[dict[str, Tensor], dict[str, float], list[Tensor]]:
    """Values and weights of the terms; the logits of the student, weak and strong, and of the teacher."""
    torch.manual_seed(1)
    x, strong = torch.randn(8, 8), torch.randn(8, 8)
    batch = rows_of(inputs={"x": x, "x@strong": strong})
    student, teacher = Seeing("student", 1.0), Seeing("mm", -2.0)
    method = MLKD.model_validate(settings).build(SPEC, {"mm": SPEC}, data_of())
    step = method(batch, student, {"mm": teacher}, Progress())
    other = batch.rendered("strong")
    logits = [source(view).logits for source in (student, teacher) for view in (batch, other)]
    values = {name: term.value for name, term in step.terms.items()}
    return (
        values,
        {name: float(term.weight) for name, term in step.terms.items()},
        [one for one in logits if one is not None],
    )


def test_two_views_by_hand() -> None:
    found, weights, (weak, strong, taught_weak, taught_strong) = terms_of(strong="strong")
    names = ("weak/mm", "strong/mm", "classes/mm", "batch/mm")
    assert weights == {"task/weak": 0.1, "task/strong": 0.1, **dict.fromkeys(names, 0.9)}
    rows, classes = masks(taught_weak)
    torch.testing.assert_close(found["weak/mm"], rows * kl(weak, taught_weak))
    torch.testing.assert_close(found["strong/mm"], kl(strong, taught_strong))
    wanted = [class_correlation(weak, taught_weak, t, classes=classes) for t in EVERY]
    torch.testing.assert_close(found["classes/mm"], torch.stack(wanted).sum())
    wanted = [row_correlation(weak, taught_weak, t, rows=rows) for t in EVERY]
    torch.testing.assert_close(found["batch/mm"], torch.stack(wanted).sum())
    task = torch.nn.functional.cross_entropy(strong, torch.arange(8) % 4, reduction="none")
    torch.testing.assert_close(found["task/strong"], task)


def test_the_released_code() -> None:
    found, _, (weak, strong, taught_weak, taught_strong) = terms_of(
        strong="strong", masks="scalar", released_views=True
    )
    rows, classes = (float(mask.mean()) for mask in masks(taught_weak))
    torch.testing.assert_close(found["weak/mm"], rows * kl(weak, taught_weak))
    own = [distillation_kl(strong, taught_strong, t) for t in (4.0, 3.0, 5.0)]
    slips = [distillation_kl(weak, taught_weak, t) for t in (2.0, 6.0)]
    torch.testing.assert_close(found["strong/mm"], torch.stack([*own, *slips]).sum(0))
    wanted = torch.stack([class_correlation(weak, taught_weak, t) for t in EVERY]).sum()
    torch.testing.assert_close(found["classes/mm"], classes * wanted)
    wanted = torch.stack([row_correlation(weak, taught_weak, t) for t in EVERY]).sum()
    torch.testing.assert_close(found["batch/mm"], rows * wanted)


def test_one_view_plays_both_parts() -> None:
    found, _, (weak, _, taught, _) = terms_of(masks="none")
    torch.testing.assert_close(found["weak/mm"], kl(weak, taught))
    torch.testing.assert_close(found["strong/mm"], found["weak/mm"])
    torch.testing.assert_close(found["task/strong"], found["task/weak"])


def test_standardised_rows_and_plain_correlations() -> None:
    plain, _, _ = terms_of(strong="strong")
    found, _, _ = terms_of(strong="strong", standardise=True)
    assert torch.equal(plain["classes/mm"], found["classes/mm"])
    assert not torch.allclose(plain["weak/mm"], found["weak/mm"])


def test_a_rendering_that_is_not_there_is_refused() -> None:
    with raises(SignalError, "'hard'", "x, x@strong"):
        terms_of(strong="hard")
