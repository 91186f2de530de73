"""What a bank is on disk: its key, reading by sample id, and everything that opening one can find wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises
from torch import Tensor

from crossdistill.bank.bank import BLOCK_ROWS, Bank, BankKey
from crossdistill.bank.fill import Estimate, Produce, estimate, fill
from crossdistill.bank.rows import BankRows
from crossdistill.errors import BankDamaged, BankError, BankMissing, BankStale, NonFiniteError

IDS = torch.arange(0, 1200, 2)  # two blocks of 256 rows and one of 88
KEY = BankKey(weights="w" * 64, data="d" * 64, rows="r" * 64, want="cut:fc1.linear", shape=(5,))


def value_of(ids: Tensor, view: Tensor | int = 0) -> Tensor:
    return torch.stack([torch.sin(ids * (k + 1.0) + view) for k in range(5)], 1)


def produce(ids: Tensor, view: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
    return {"a": (value_of(ids, 0 if view is None else view), None)}


def filled(folder: Path, key: BankKey = KEY, how: Produce = produce, rows: BankRows | None = None) -> Bank:
    bank = Bank.create(folder, key, rows or BankRows(IDS), {"source": "a"})
    fill({"a": bank}, how, lambda: None, lambda text: None)
    return bank


def test_rows_are_read_by_sample_id_in_any_order(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    ids = IDS[torch.randperm(len(IDS))[:40]]
    assert torch.equal(bank.read(ids), value_of(ids))
    assert torch.equal(bank.read(ids[:0]), value_of(ids[:0]))
    assert torch.equal(bank.read(torch.cat([ids[:3], ids[:3]])), value_of(torch.cat([ids[:3], ids[:3]])))


def test_what_is_held_in_memory_is_what_is_on_disk(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    mapped = bank.read(IDS)
    bank.hold()
    assert torch.equal(bank.read(IDS), mapped)


@pytest.mark.parametrize(("dtype", "eps"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_half_precision_keeps_its_digits(tmp_path: Path, dtype: str, eps: float) -> None:
    bank = filled(tmp_path, replace(KEY, dtype=dtype))
    read = bank.read(IDS)
    assert read.dtype == getattr(torch, dtype)
    assert torch.equal(read, value_of(IDS).to(read.dtype))
    assert torch.allclose(read.float(), value_of(IDS), rtol=eps, atol=0)
    assert bank.path.joinpath("values.npy").stat().st_size == 128 + 2 * len(IDS) * 5
    bank.hold()
    assert torch.equal(bank.read(IDS), read)


def test_views_are_rows_of_their_own(tmp_path: Path) -> None:
    train, validation = IDS[:400], IDS[400:]
    numbers = torch.arange(1, 4).repeat_interleave(400)
    rows = BankRows(torch.cat([validation, train.repeat(3)]), torch.cat([torch.zeros_like(validation), numbers]))
    bank = filled(tmp_path, replace(KEY, views=3), rows=rows)
    assert len(bank.blocks) == -(-1400 // BLOCK_ROWS)
    ids, view = train[torch.tensor([0, 1, 399, 0, 7, 7])], torch.tensor([1, 1, 2, 3, 2, 3])
    wanted = torch.stack([value_of(i[None], int(v))[0] for i, v in zip(ids, view, strict=True)])
    assert torch.equal(bank.read(ids, view), wanted)
    assert torch.equal(bank.read(validation), value_of(validation)), "as they are, where no view is named"
    assert torch.equal(bank.read(validation, torch.zeros_like(validation)), value_of(validation))
    with raises(BankMissing, "view", 3):
        bank.read(ids)
    with raises(BankMissing, "view 4", 3):
        bank.read(ids, view + 1)
    with raises(BankMissing, "view 2", 3):
        bank.read(validation[:2], torch.full((2,), 2))
    with raises(BankMissing, "samples 3"):
        bank.read(torch.tensor([0, 3]), torch.tensor([1, 1]))


def test_another_view_than_the_only_one_is_refused(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    assert torch.equal(bank.read(IDS[:2], torch.zeros(2, dtype=torch.int64)), value_of(IDS[:2]))
    with raises(BankMissing, "view 1"):
        bank.read(IDS[:2], torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("ids", [[0, 3], [4, 99999]])
def test_a_sample_that_is_not_in_the_bank(tmp_path: Path, ids: list[int]) -> None:
    bank = filled(tmp_path)
    with raises(BankMissing, 600, ids[1]):
        bank.read(torch.tensor(ids))
    assert torch.equal(bank.read(IDS[:3]), value_of(IDS[:3])), "it can be used again afterwards"


def test_banks_of_the_same_samples_share_one_lookup(tmp_path: Path) -> None:
    first = filled(tmp_path)
    second = Bank.open(first.path, KEY, first.rows)
    ids = IDS[5:9]
    assert first.rows.find(ids) is second.rows.find(ids)
    assert first.rows.find(ids.clone()) is not first.rows.find(ids)


def test_a_row_that_was_not_seen_is_marked(tmp_path: Path) -> None:
    def half(ids: Tensor, view: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        rows = (ids % 4 == 0).nonzero().flatten()
        return {"a": (value_of(ids[rows]), rows)}

    bank = filled(tmp_path, how=half)
    at = bank.rows.find(IDS)
    seen = bank.seen(at)
    assert seen is not None
    assert torch.equal(seen, IDS % 4 == 0)
    assert torch.equal(bank.take(at)[seen], value_of(IDS[seen]))
    assert not bank.take(at)[~seen].any()
    assert filled(tmp_path / "other").seen(at) is None


def test_the_key_names_the_folder_and_every_field_changes_it() -> None:
    changes = {
        "weights": "x",
        "data": "x",
        "rows": "x",
        "want": "logits",
        "shape": (6,),
        "gives": "float16",
        "dtype": "float16",
        "transform": "x",
        "views": 2,
        "computed": "x",
        "schema": 0,
    }
    assert set(changes) == set(KEY.as_data())
    folders = {KEY.folder, *(replace(KEY, **{name: value}).folder for name, value in changes.items())}
    assert len(folders) == len(changes) + 1
    assert KEY.folder.startswith("cut-fc1-linear-")
    assert BankKey.from_data(json.loads(json.dumps(KEY.as_data())), Path("x")) == KEY


def test_making_a_bank_that_is_there_opens_it(tmp_path: Path) -> None:
    first = filled(tmp_path)
    again = Bank.create(tmp_path, KEY, BankRows(IDS), {"source": "b"})
    assert not again.missing()
    assert again.path == first.path


def test_no_bank() -> None:
    with raises(BankMissing, "nowhere"):
        Bank.open(Path("nowhere"), KEY, BankRows(IDS))


def test_a_bank_that_is_not_filled(tmp_path: Path) -> None:
    bank = Bank.create(tmp_path, KEY, BankRows(IDS), {})
    assert bank.missing() == [0, 1, 2]
    for use in (lambda: bank.read(IDS[:2]), bank.hold, bank.verify_values):
        with raises(BankMissing, "3 of 3", 0):
            use()


def test_a_stale_bank_names_the_fields_that_differ(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    other = replace(KEY, weights="v" * 64, dtype="float16")
    with raises(BankStale, "weights", "v" * 12, "w" * 12, "dtype", "'float16'"):
        Bank.open(bank.path, other, BankRows(IDS))


def _truncate(path: Path) -> None:
    with (path / "values.npy").open("rb+") as file:
        file.truncate(1000)


def _other_type(path: Path) -> None:
    np.save(path / "values.npy", np.zeros((600, 5), np.float64))


def _other_shape(path: Path) -> None:
    np.save(path / "seen.npy", np.zeros(599, np.uint8))


def _no_array(path: Path) -> None:
    (path / "values.npy").write_bytes(b"not an array")


def _other_views(path: Path) -> None:
    np.save(path / "view.npy", np.ones(600, np.int64))


def _other_ids(path: Path) -> None:
    ids = IDS.numpy().copy()
    ids[17] = 35
    np.save(path / "ids.npy", ids)


DAMAGES: list[tuple[Callable[[Path], None], tuple[object, ...]]] = [
    (_truncate, ("values.npy", 1_000, 12_128)),
    (_other_type, ("values.npy", "<f8 (600, 5)", "<f4 (600, 5)")),
    (_other_shape, ("seen.npy", "(599,)", "(600,)")),
    (_no_array, ("values.npy",)),
    (lambda path: (path / "blocks.npy").unlink(), ("blocks.npy",)),
    (_other_views, ("row 0", "view 1")),
    (_other_ids, ("row 17", "sample 35", 34)),
    (lambda path: (path / "bank.json").write_text("{"), ("bank.json",)),
    (lambda path: (path / "bank.json").write_text("{}"), ("bank.json",)),
]


@pytest.mark.parametrize(("damage", "facts"), DAMAGES, ids=[str(facts[0]) for _, facts in DAMAGES])
def test_damage_is_found_when_a_bank_is_opened(
    tmp_path: Path, damage: Callable[[Path], None], facts: tuple[object, ...]
) -> None:
    bank = filled(tmp_path)
    damage(bank.path)
    with raises(BankDamaged, *facts, "crossdistill bank clear"):
        Bank.open(bank.path, KEY, BankRows(IDS))


def test_a_changed_value_is_found_by_its_checksum(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    bank.verify_values()
    values = np.load(bank.path / "values.npy", mmap_mode="r+")
    values[300, 2] += 1
    values.flush()
    again = Bank.open(bank.path, KEY, BankRows(IDS))
    for use in (again.verify_values, again.hold):
        with raises(BankDamaged, "block 1", "256", "511"):
            use()


def test_a_key_of_another_schema(tmp_path: Path) -> None:
    with raises(BankDamaged, "schema"):
        BankKey.from_data({"weights": "w"}, tmp_path)


def test_values_that_do_not_fit_the_key(tmp_path: Path) -> None:
    bank = Bank.create(tmp_path, KEY, BankRows(IDS), {})
    with raises(BankError, "cut:fc1.linear", "(4,)", "(5,)"):
        fill({"a": bank}, lambda ids, _: {"a": (value_of(ids)[:, :4], None)}, lambda: None, lambda text: None)
    with raises(BankError, "float64 (5,)"):
        fill({"a": bank}, lambda ids, _: {"a": (value_of(ids).double(), None)}, lambda: None, lambda text: None)


def test_numbers_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    bank = Bank.create(tmp_path, replace(KEY, dtype="float16"), BankRows(IDS), {})

    def large(ids: Tensor, view: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        return {"a": (torch.where(ids == 600, 1e6, 1.0)[:, None].expand(-1, 5), None)}

    with raises(NonFiniteError, "600", "float16", "bank.dtype=float32"):
        fill({"a": bank}, large, lambda: None, lambda text: None)
    assert 1 in bank.missing()


def test_the_estimate_writes_nothing(tmp_path: Path) -> None:
    sizes: list[int] = []

    def counting(ids: Tensor, view: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        sizes.append(len(ids))
        return produce(ids, view)

    projected = estimate(BankRows(IDS), KEY.bytes(len(IDS)), 3, BLOCK_ROWS, counting)
    assert sizes == [2, 256]
    assert projected.bytes == 600 * 5 * 4
    assert projected.seconds > 0
    assert not list(tmp_path.iterdir())
    assert Estimate(600, 3, 12000, 0.2).text() == "600 rows, 11.7 kB, about a moment"
    assert Estimate(56_000, 219, 3 * 2**30, 300.0).text() == "56,000 rows, 3.0 GB, about 5.0 min"


def test_rows_of_no_samples() -> None:
    with pytest.raises(BankMissing):
        BankRows(torch.zeros(0, dtype=torch.int64)).find(torch.tensor([0]))
