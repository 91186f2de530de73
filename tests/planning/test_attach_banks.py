"""What sources are supplied: banks filled in parts, cuts that another stage has kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bank_recipes import masks, planned, recipe, stage
from torch import Tensor

from crossdistill import Batch, Dataset, Network, run
from crossdistill.methods import Route
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import Quiet
from crossdistill.testing import toy_dataset


@pytest.mark.parametrize("absent", [0.0, 0.2])
def test_a_block_is_computed_in_parts_that_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: float
) -> None:
    """What a part holds is the peak of memory of a stage that reads banks alone."""
    data = toy_dataset(absent={"second": absent})
    if absent:
        data.present["second"][data.splits["train"].sort().values[14:28]] = False  # parts of which no row is seen
    made, sizes = [], []
    plain = Dataset.batch

    def watched(self: Dataset, rows: Tensor, *more: Any, **named: Any) -> Batch:
        sizes.append(len(rows))
        return plain(self, rows, *more, **named)

    for size in (10_000, 7):
        monkeypatch.setattr("crossdistill.planning.attach_banks.PASS_ROWS", {"cpu": size})
        plan = planned(recipe(masks("banked"), stage(Route(), "banked"), dataset=data))
        monkeypatch.setattr(Dataset, "batch", watched)
        sizes.clear()
        supplied, _ = attach_banks(
            plan.jobs[1], plan.recipe.bank, tmp_path / f"{size}", Devices(torch.device("cpu")), Quiet()
        )
        monkeypatch.setattr(Dataset, "batch", plain)
        assert max(sizes) <= max(size, 2)
        batch = data.batch(data.splits["train"].sort().values[10:40])
        made.append([teacher(batch) for teacher in supplied.teachers.values()])
    for whole, parts in zip(*made, strict=True):
        assert (whole.rows is None) == (parts.rows is None) == (not absent)
        if whole.rows is not None:
            assert torch.equal(whole.rows, parts.rows)
        torch.testing.assert_close(whole.logits, parts.logits)


def test_cuts_of_an_earlier_stage_feed_the_specialised_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stem is not run again for `route`, and its banks are the same bit for bit as if it were."""
    stems: dict[str, int] = {"one": 0, "two": 0}
    plain = Network.cuts
    for name in stems:
        with monkeypatch.context() as patch:

            def counting(self: Network, batch: Batch, taps: Any, name: str = name) -> Any:
                stems[name] += len(batch) if taps else 0
                return plain(self, batch, taps)

            patch.setattr(Network, "cuts", counting)
            if name == "two":
                patch.setattr("crossdistill.planning.attach_banks._cuts", lambda *_: {})
            run(recipe(masks(), stage(Route())), tmp_path / name)
    # Without them, all 192 rows go through both teachers' stems again, to be timed and to fill the banks.
    assert stems["one"] > 0
    assert stems["two"] - stems["one"] >= 2 * 2 * 192
    banks = [{p.name: (p / "values.npy").read_bytes() for p in (tmp_path / name / "banks").iterdir()} for name in stems]
    assert banks[0] == banks[1]
