"""CNN-I, the multimodal teacher of MST-Distill's AV-MNIST experiments: two branches, joined before the classifier.

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional


class ImageBranch(nn.Module):
    """Images (B, 1, 28, 28) -> features (B, 84): LeNet5 up to the ReLU after its fc1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv1_relu = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv2_relu = nn.ReLU()
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.conv3_relu = nn.ReLU()
        self.fc1 = nn.Linear(120, 84)

    def forward(self, image: Float[Tensor, "B 1 28 28"] | fx.Proxy) -> Float[Tensor, "B 84"] | fx.Proxy:
        """Features, none below zero."""
        maps = functional.avg_pool2d(self.conv1_relu(self.conv1(image)), 2)
        maps = functional.avg_pool2d(self.conv2_relu(self.conv2(maps)), 2)
        return functional.relu(self.fc1(self.conv3_relu(self.conv3(maps)).flatten(1)))


class AudioBranch(nn.Module):
    """Spectrograms (B, 1, H, W) -> features (B, 512): five convolutions, four poolings, mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv1_relu = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv2_relu = nn.ReLU()
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv3_relu = nn.ReLU()
        self.conv4 = nn.Conv2d(128, 256, 3, padding=1)
        self.conv4_relu = nn.ReLU()
        self.conv5 = nn.Conv2d(256, 512, 3, padding=1)
        self.conv5_relu = nn.ReLU()

    def forward(self, audio: Float[Tensor, "B 1 H W"] | fx.Proxy) -> Float[Tensor, "B 512"] | fx.Proxy:
        """Features, none below zero."""
        maps = functional.max_pool2d(self.conv1_relu(self.conv1(audio)), 2)
        maps = functional.max_pool2d(self.conv2_relu(self.conv2(maps)), 2)
        maps = functional.max_pool2d(self.conv3_relu(self.conv3(maps)), 2)
        maps = functional.max_pool2d(self.conv4_relu(self.conv4(maps)), 2)
        features: Tensor = self.conv5_relu(self.conv5(maps)).mean(dim=(2, 3))
        return features


class CNNI(nn.Module):
    """Images (B, 1, 28, 28) and spectrograms (B, 1, 112, 112) -> logits (B, classes); 1,809,752 parameters.

    Taps: the convolutions of both branches, before their ReLU, and each with `_relu` after it; concat_identity (596,),
    the image's 84 features first; fc1 (298,). As published there is no activation between fc1 and fc2, so the head is
    one linear map in two factors.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.image = ImageBranch()
        self.audio = AudioBranch()
        self.concat_identity = nn.Identity()
        self.fc1 = nn.Linear(84 + 512, 298)
        self.fc2 = nn.Linear(298, classes)

    def forward(
        self, image: Float[Tensor, "B 1 28 28"] | fx.Proxy, audio: Float[Tensor, "B 1 112 112"] | fx.Proxy
    ) -> Float[Tensor, "B classes"] | fx.Proxy:
        """Class logits."""
        joint = self.concat_identity(torch.cat([self.image(image), self.audio(audio)], dim=1))
        logits: Tensor = self.fc2(self.fc1(joint))
        return logits
