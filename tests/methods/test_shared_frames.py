"""Frames that student and teachers share: of other rates, of clips of other lengths, and pooled for all ranks."""

from dataclasses import replace

import pytest
import torch
from test_multi_distillation import HOP, network, rehearsal, sounds
from test_multi_distillation import _alone as alone
from torch import Tensor, nn

from crossdistill import Dataset, Network
from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.hidden_states import barlow_distance
from crossdistill.method import Progress
from crossdistill.methods import MultiDistillation
from crossdistill.testing.rehearsal import Contract, Rehearsal


def test_frames_of_another_rate_are_interpolated_and_refused_without_a_rate() -> None:
    members = {"student": network(8, 0, 2), "speech": network(6, 1, hop=2)}
    data = sounds(domains=("speech",))
    with pytest.raises(ApplicabilityError, match="frame_rates"):
        Contract(MultiDistillation(), data, given=members).build(1)
    held = Rehearsal(
        Contract(MultiDistillation(frame_rates={"student": 50, "speech": 100}), data, given=members), teachers=1
    )
    found, head = held.validated(), held.job.method.heads["speech"]
    for row in range(4):
        one = alone(held.batch(), row)
        mine = held.job.student(one).features["layer2"]
        predicted, count = head.translator(mine, None)[0], mine.shape[1]
        for number in (1, 2, 3):
            # A frame of the student lies amid two of the teacher.
            pairs = held.job.teachers["speech"](one).features[f"layer{number}"][0, : 2 * count].unflatten(0, (-1, 2))
            apart = predicted[number - 1] - pairs.mean(1)
            angle = torch.cosine_similarity(predicted[number - 1], pairs.mean(1), dim=1)
            slow = apart.abs().mean() - torch.nn.functional.logsigmoid(angle).mean()
            torch.testing.assert_close(found[f"speech/layer{number}"][row], slow)


class Whole(nn.Module):
    """Spectra of one length (B, 12, 4) -> 12 frames, without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(HOP, 8)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.layer1(values).mean(1)}


def test_frames_behind_the_end_of_a_teachers_clip_are_in_no_term() -> None:
    data = sounds(domains=("speech",))
    spectra = torch.randn(len(data), 12, HOP, generator=torch.Generator().manual_seed(2))
    both = Dataset.from_arrays("both", {"audio": data.inputs["audio"], "spectrum": spectra}, domain=data.domain)
    members = {"student": Network(Whole(), ("spectrum",), ["layer1"]), "speech": network(6, 1)}
    held = Rehearsal(Contract(MultiDistillation(translator="mlp"), both, given=members), teachers=1)
    batch, found = held.batch(), held.validated()
    lengths = batch.inputs["audio"]["lengths"]
    assert len(lengths.unique()) > 1
    for row, length in enumerate(lengths.tolist()):
        one = batch.select(torch.tensor([row]))
        sound = {"values": one.inputs["audio"]["values"][:, :length], "lengths": lengths[row : row + 1]}
        single = held.job.method.validate(
            replace(one, inputs={**one.inputs, "audio": sound}), held.job.student, held.job.teachers
        )
        torch.testing.assert_close(single["speech/layer3"][0], found["speech/layer3"][row])


def test_barlow_compares_as_many_parts_on_each_rank_and_reads_no_padding() -> None:
    held = rehearsal(MultiDistillation(loss="barlow", translator="mlp", across=0.5, within=20.0, bins=16))
    method, batch = held.job.method.eval(), held.batch(held.dataset.splits["train"])
    inputs, shapes = batch.inputs["audio"], list[tuple[int, ...]]()

    def gather(rows: Tensor) -> Tensor:
        shapes.append(tuple(rows.shape[1:]))
        return rows

    def terms(of: Batch) -> dict[str, Tensor]:
        found = method(of, held.job.student, held.job.teachers, Progress(gather=gather)).terms
        return {name: term.value.detach() for name, term in found.items()}

    wider = {**inputs, "values": nn.functional.pad(inputs["values"], (0, 40), value=9.0)}
    whole, padded = terms(batch), terms(replace(batch, inputs={"audio": wider}))
    short = inputs["lengths"] < 36
    terms(batch.select(short.nonzero().flatten()))
    # Fewer frames than parts, on a rank of short rows too.
    assert set(shapes) == {(3, 16, 6), (3, 16, 10)}
    for name, width in (("speech", 6), ("music", 10)):
        torch.testing.assert_close(padded[f"multi-distillation/{name}"], whole[f"multi-distillation/{name}"])
        pairs = []
        for row in [row for row, domain in enumerate(batch.domain or ()) if domain == name]:
            one = alone(batch, row)
            states = held.job.teachers[name](one).features
            target = torch.stack([states[f"layer{number}"] for number in (1, 2, 3)], 1)
            mine = held.job.student(one).features["layer2"]
            both = torch.cat([method.heads[name].translator(mine, None), target])
            pairs.append(nn.functional.adaptive_avg_pool2d(both, (16, width)))
        mine, theirs = torch.stack(pairs, 1)
        angle = -nn.functional.logsigmoid(nn.functional.cosine_similarity(mine, theirs, dim=-1)).mean()
        slow = barlow_distance(mine, theirs, 0.5, 20.0) + angle
        torch.testing.assert_close(whole[f"multi-distillation/{name}"], slow, rtol=1e-4, atol=1e-5)
