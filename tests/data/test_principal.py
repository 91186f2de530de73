import numpy as np
import pytest
import torch
from facts import raises

from crossdistill.data.principal import fit_principal, weaken
from crossdistill.errors import SettingError


def pictures(rows: int = 200, width: int = 12) -> torch.Tensor:
    scales = torch.linspace(3, 0.1, width)
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * scales + 5


def test_equals_the_singular_value_decomposition() -> None:
    x = pictures()
    centred = (x - x.mean(0)).double().numpy()
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    carried = np.cumsum(values**2) / np.sum(values**2)
    for energy in (0.1, 0.25, 0.5, 0.9, 1.0):
        principal = fit_principal(x, energy=energy)
        count = int(np.argmax(carried >= energy - 1e-12)) + 1
        assert len(principal.basis) == count, energy
        assert principal.energy == pytest.approx(carried[count - 1], abs=1e-9)
        rebuilt = centred @ rows[:count].T @ rows[:count] + x.mean(0).double().numpy()
        assert weaken(x, principal.mean, principal.basis).numpy() == pytest.approx(rebuilt, abs=1e-4)


def test_what_is_left_has_so_many_dimensions() -> None:
    x = pictures()
    principal = fit_principal(x, components=3)
    left = weaken(x, principal.mean, principal.basis)
    assert torch.linalg.matrix_rank((left - left.mean(0)).double(), rtol=1e-5) == 3
    assert weaken(left, principal.mean, principal.basis).allclose(left, atol=1e-4)


def test_blocks_and_signs_do_not_matter() -> None:
    x = pictures(9000)
    principal = fit_principal(x, components=4)
    reference = np.linalg.eigh(np.cov(x.double().numpy().T))[1][:, ::-1].T[:4]
    agreement = np.abs((principal.basis.double().numpy() * reference).sum(1))
    assert agreement == pytest.approx(np.ones(4), abs=1e-6)
    assert (principal.basis.gather(1, principal.basis.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("wrong", [{}, {"energy": 0.5, "components": 2}, {"components": 13}, {"energy": 1.5}])
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with raises(SettingError, "components"):
        fit_principal(pictures(), **wrong)
