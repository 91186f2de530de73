"""Augmentation: each change against a slow account of it, views that depend on row and number alone, wrong settings."""

from dataclasses import replace

import pytest
import torch
from facts import raises, warned
from pydantic import ValidationError
from torch import Tensor

from crossdistill.data.augmentation import Augmentation, OwnAugmentation, Variation, Variations, drawn_views, in_views
from crossdistill.data.dataset import Dataset
from crossdistill.data.row_random import RowRandom
from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.runtime.hashing import derived_seed, key_hash
from crossdistill.testing import toy_dataset

IDS = torch.arange(40)
VIEW = torch.arange(40) % 3 + 1
VALUE = torch.randn(40, 2, 5, 7, generator=torch.Generator().manual_seed(0))


def varied(change: Variation, value: Tensor = VALUE, seed: int = 0) -> Tensor:
    return Variations(inputs={"x": change}, seed=seed)({"x": value}, IDS[: len(value)], VIEW[: len(value)])["x"]


def drawn(what: str, *shape: int) -> Tensor:
    return RowRandom(derived_seed("view", 0, "x", what), IDS, VIEW).uniform(*shape)


def test_a_shift_moves_whole_rows_and_repeats_the_edge() -> None:
    found, by = varied(Variation(shift=(1, 2))), drawn("shift", 2)
    seen = set()
    for row in range(len(VALUE)):
        down, right = int(by[row, 0] * 3) - 1, int(by[row, 1] * 5) - 2
        seen.add((down, right))
        for y in range(5):
            for x in range(7):
                wanted = VALUE[row, :, min(max(y - down, 0), 4), min(max(x - right, 0), 6)]
                assert torch.equal(found[row, :, y, x], wanted)
    assert len(seen) > 8, "of 15 shifts that there are"
    assert torch.equal(varied(Variation(shift=(50,)), VALUE[..., :1]), VALUE[..., :1])


def test_a_flip_mirrors_about_half_of_the_rows() -> None:
    found, chosen = varied(Variation(flip=True)), drawn("flip", 1)[:, 0] < 0.5
    assert torch.equal(found[chosen], VALUE[chosen].flip(-1))
    assert torch.equal(found[~chosen], VALUE[~chosen])
    assert 8 < int(chosen.sum()) < 32


def test_hidden_pieces_are_the_mean() -> None:
    found, numbers = varied(Variation(mask=(0.0, 0.6))), drawn("hide", 2, 2)
    hidden = 0
    for row in range(len(VALUE)):
        size = float(numbers[row, 1, 0]) * 0.6 * 7
        start = float(numbers[row, 1, 1]) * (7 - size)
        for x in range(7):
            inside = start <= x < start + size
            hidden += inside
            wanted = VALUE[row].mean().expand(2, 5) if inside else VALUE[row, :, :, x]
            assert torch.allclose(found[row, :, :, x], wanted)
    assert 40 < hidden < 140, "up to 60 %, evenly: about 2 of 7 in each of 40 rows"


def test_gain_and_noise() -> None:
    gains = varied(Variation(gain=0.5)) / VALUE
    assert torch.allclose(gains, (1 + 0.5 * (2 * drawn("gain", 1) - 1)).view(40, 1, 1, 1).expand_as(gains), atol=1e-5)
    noise = varied(Variation(noise=0.2)) - VALUE
    wanted = 0.2 * RowRandom(derived_seed("view", 0, "x", "noise"), IDS, VIEW).normal(2, 5, 7)
    assert torch.allclose(noise, wanted, atol=1e-6)


def test_changes_come_one_after_another_and_leave_the_type_as_it_is() -> None:
    assert varied(Variation()) is VALUE
    both = Variation(shift=(1, 1), noise=0.1)
    assert torch.equal(varied(both), varied(Variation(noise=0.1), varied(Variation(shift=(1, 1)))))
    assert varied(ALL, VALUE.half()).dtype == torch.float16
    whole = Variations(inputs={"x": Variation(shift=(1, 1), flip=True)})
    assert whole({"x": (VALUE * 9).to(torch.uint8)}, IDS, VIEW)["x"].dtype == torch.uint8


ALL = Variation(shift=(2,), flip=True, mask=(0.3, 0.3), gain=0.2, noise=0.1)


def test_a_view_depends_on_the_row_and_its_number_alone() -> None:
    whole = varied(ALL)
    one = Variations(inputs={"x": ALL})({"x": VALUE[7:9]}, IDS[7:9], VIEW[7:9])["x"]
    assert torch.equal(one, whole[7:9])
    assert not torch.equal(varied(ALL, seed=1), whole)
    other = Variations(inputs={"x": ALL})({"x": VALUE}, IDS, VIEW + 1)["x"]
    assert (other != whole).flatten(1).any(1).all()


def test_view_0_is_the_row_as_it_is() -> None:
    view = VIEW.clone()
    view[::2] = 0
    found = in_views(Variations(inputs={"x": ALL}), {"x": VALUE, "y": VALUE[:, 0]}, IDS, view)
    assert torch.equal(found["x"][::2], VALUE[::2])
    assert torch.equal(found["x"][1::2], varied(ALL)[1::2])
    assert torch.equal(found["y"], VALUE[:, 0])
    plain = {"x": VALUE}
    assert in_views(Variations(inputs={"x": ALL}), plain, IDS, torch.zeros_like(view)) is plain


def test_views_are_drawn_by_seed_epoch_and_row() -> None:
    few, ids = Variations(views=4), torch.arange(4000)
    found = [drawn_views(few, 0, epoch, ids) for epoch in range(3)]
    for one in found:
        assert (one.bincount(minlength=5)[1:] - 1000).abs().max() < 150
        assert one.min() == 1
    assert (found[0] == found[1]).double().mean().item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(drawn_views(few, 0, 2, ids[5:9]), found[2][5:9])
    assert not torch.equal(drawn_views(few, 1, 0, ids), found[0])
    endless = torch.cat([drawn_views(Variations(), 0, epoch, ids) for epoch in range(3)])
    assert len(endless.unique()) == 12_000
    assert endless.min() > 0


def augmented(augmentation: Augmentation | None) -> Dataset:
    return replace(toy_dataset(), augmentation=augmentation)


def test_a_dataset_gives_rows_in_views() -> None:
    variations = Variations(inputs={"first": Variation(noise=0.5)}, views=3)
    data = augmented(variations)
    rows = data.splits["train"][:6]
    plain = data.batch(rows)
    assert plain.view is None
    view = data.views(rows, seed=0, epoch=1)
    assert view is not None
    assert torch.equal(view, drawn_views(variations, 0, 1, rows))
    batch = data.batch(rows, view=view)
    assert torch.equal(batch.view, view)
    assert torch.equal(batch.inputs["first"], variations(plain.inputs, rows, view)["first"])
    assert torch.equal(batch.inputs["second"], plain.inputs["second"])
    assert augmented(None).views(rows, 0, 0) is None
    assert data.fingerprint == augmented(None).fingerprint, "what is kept of other stages is not lost"


def louder(inputs: dict[str, Tensor], ids: Tensor, view: Tensor) -> dict[str, Tensor]:
    return {name: value * (1 + view.view(-1, *[1] * (value.ndim - 1))) for name, value in inputs.items()}


def test_a_function_of_ones_own() -> None:
    own = OwnAugmentation(louder, views=2)
    assert isinstance(own, Augmentation)
    assert own.key == OwnAugmentation(louder, views=2).key
    assert own.key != OwnAugmentation(louder, views=3).key
    assert own.key != OwnAugmentation(lambda inputs, ids, view: inputs, views=2).key
    data = augmented(own)
    rows = data.splits["train"][:4]
    assert torch.equal(
        data.batch(rows, view=torch.ones(4, dtype=torch.int64)).inputs["first"], 2 * data.inputs["first"][rows]
    )
    source = torch.Generator()
    drawn = OwnAugmentation(lambda inputs, ids, view: {"first": torch.rand(2, generator=source)})
    assert drawn.key is None, "no key says the state of a source of random numbers"


def test_the_key_has_every_setting() -> None:
    settings = [
        Variations(),
        Variations(views=2),
        Variations(seed=1),
        *(Variations(inputs={name: Variation(noise=0.1)}) for name in ("x", "y")),
        *(
            Variations(inputs={"x": Variation(**one)})
            for one in ({"shift": (1,)}, {"flip": True}, {"mask": (0.1,)}, {"gain": 0.1})
        ),
    ]
    assert len({one.key for one in settings}) == len(settings)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"shift": [-1]}, ("at least 0",)),
        ({"mask": [1.5]}, ("[0, 1]", "[1.5]")),
        ({"noise": -1}, ("greater_than_equal",)),
        ({"blur": 1}, ("extra_forbidden",)),
    ],
)
def test_amounts_that_cannot_be(settings: dict[str, object], facts: tuple[str, ...]) -> None:
    with raises(ValidationError, *facts):
        Variation.model_validate(settings)


def test_settings_that_are_not_for_the_data() -> None:
    inputs = {"image": VALUE, "words": torch.zeros(40, 3, dtype=torch.int64)}
    wrong = Variations(
        inputs={"imgae": Variation(flip=True), "image": Variation(shift=(1,) * 4), "words": Variation(noise=0.1)}
    )
    assert wrong.faults(inputs) == [
        "augmentation.inputs: the data have no 'imgae'; did you mean 'image'? known: image, words",
        "augmentation.inputs.image: shift has 4 numbers, but a row of 'image' has 3 dimensions",
        "augmentation.inputs.words: gain, noise and mask are for fractions, and 'words' is torch.int64",
    ]
    (nothing,) = Variations(views=3, inputs={"image": Variation()}).faults(inputs)
    assert "it has settings, but nothing is varied; set data.augmentation.inputs.MODALITY.CHANGE" in nothing
    assert not Variations(inputs={"image": Variation(flip=True), "words": Variation(shift=(1,))}).faults(inputs)


def test_a_data_set_of_the_table_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AvDigitsConfig, "build", lambda self, progress: toy_dataset())
    assert AvDigitsConfig().load().augmentation is None
    variations = Variations(inputs={"first": Variation(noise=0.1)}, views=2)
    assert AvDigitsConfig(augmentation=variations).load().augmentation == variations


def test_hide_is_the_old_name_of_mask() -> None:
    with warned(DeprecationWarning, "mask"):
        old = Variation.model_validate({"hide": [0.3]})
    assert old == Variation(mask=(0.3,))
    # The key of before the field was renamed.
    key = Variations(inputs={"image": old}, views=2).key
    assert key == key_hash(["variations", {"image": {"hide": [0.3]}}, 2, 0])
