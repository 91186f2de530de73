"""The head of one teacher in multi-distillation: its translator, its layers' standardisation, and its frames."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from crossdistill.losses.hidden_states import at_frame_rate
from crossdistill.nets.feature_translators import ByLayer
from crossdistill.nets.standardisation import Moments, Standardisation, Standardise
from crossdistill.nets.translators import by_position

CUT = 2
"""Frames by which two networks of one rate may differ: rounding in their convolutions."""


class TeacherHead(nn.Module):
    """Predictions of a teacher's layers, and these layers at the student's frames.

    `channels` are the student's channels that the translator reads; `ratio` is the teacher's frame rate divided by the
    student's, `width` the channels of the teacher's layers. The translator may belong to several heads. `summary`: the
    teacher has one vector for a row, which is predicted from the mean of the student's valid frames.
    """

    def __init__(
        self,
        translator: nn.Module,
        channels: slice,
        ratio: float,
        standardise: Standardise,
        width: int,
        layers: int,
        *,
        summary: bool = False,
    ) -> None:
        super().__init__()
        self.translator = translator
        self.channels, self.ratio, self.width, self.summary = channels, ratio, width, summary
        self.standardise = nn.ModuleList(Standardisation(standardise, width) for _ in range(layers))

    def forward(self, student: list[Tensor], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B N T D"]:
        """The predictions, from one layer of the student or from one for each layer of the teacher."""
        frames = [by_position(feature)[..., self.channels] for feature in student]
        if len(frames) == 1:
            predicted: Tensor = self.translator(frames[0], valid)
            return predicted
        assert isinstance(self.translator, ByLayer)
        return torch.stack([self.translator.layer(i, one, valid) for i, one in enumerate(frames)], 1)

    def at_student(
        self, layers: list[Tensor], frames: Int64[Tensor, " B"] | None, total: int
    ) -> Float[Tensor, "B N T D"]:
        """The teacher's layers, not yet standardised, at no more than `total` frames of the student."""
        stacked = torch.stack([by_position(layer) for layer in layers], 1)
        if self.ratio != 1:
            available = round(stacked.shape[2] / self.ratio)
            return at_frame_rate(stacked, frames, self.ratio, min(total, max(available, 1)))
        return stacked[:, :, :total]

    def student_frames(self, frames: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """The number of frames of the student that so many frames of the teacher reach."""
        return frames if self.ratio == 1 else (frames / self.ratio).round().long().clamp_min(1)

    def standard(self, target: Float[Tensor, "B N T D"]) -> Float[Tensor, "B N T D"]:
        """The layers, each standardised."""
        parts = [norm(target[:, number]) for number, norm in enumerate(self.standardise)]
        return torch.stack(parts, 1)

    def moments(self) -> list[Moments]:
        """Empty sums for each layer."""
        return [Moments(norm) for norm in self.standardise if isinstance(norm, Standardisation)]

    def settle(self, moments: list[Moments]) -> None:
        """Set the statistics of each layer."""
        for norm, sums in zip(self.standardise, moments, strict=True):
            assert isinstance(norm, Standardisation)
            norm.settle(sums)


class OwnHead(nn.Module):
    """In place of a translator: the student's own layer is the prediction of the teacher's one layer."""

    def forward(self, frames: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B 1 T D"]:
        """The frames as they are."""
        return frames.unsqueeze(1)


def frames_differ(student: int, teacher: int, ratio: float) -> bool:
    """Whether two networks give numbers of frames for the same input that no cut makes equal."""
    return abs(student - round(teacher / ratio)) > CUT
