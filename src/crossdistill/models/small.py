"""Smaller versions of the AV-MNIST networks, for `av-digits`: 3,000 rows forward and back in 0.1-0.7 s on one thread.

Strides instead of pooling, because pooling costs as much as a convolution at this size. No BatchNorm and no dropout,
so that one batch, its micro-batches and several ranks agree up to rounding.

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional


class SmallImage(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B, classes); 16,290 parameters with 10 classes.

    Taps: conv1 (16, 8, 8), conv2 (24, 4, 4), fc1 (32,), before their ReLU, and each with `_relu` after it.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv1_relu = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.conv2_relu = nn.ReLU()
        self.fc1 = nn.Linear(24 * 4 * 4, 32)
        self.fc1_relu = nn.ReLU()
        self.fc2 = nn.Linear(32, classes)

    def forward(self, image: Float[Tensor, "B 1 8 8"] | fx.Proxy) -> Float[Tensor, "B classes"] | fx.Proxy:
        """Class logits."""
        maps = self.conv1_relu(self.conv1(image))
        maps = self.conv2_relu(self.conv2(maps))
        logits: Tensor = self.fc2(self.fc1_relu(self.fc1(maps.flatten(1))))
        return logits


class SmallAudio(nn.Module):
    """Log-mel spectrograms (B, 1, 32, 32) -> logits (B, classes); 17,378 parameters with 10 classes.

    Taps: conv1 (8, 16, 16), conv2 (16, 8, 8), conv3 (24, 4, 4), fc1 (32,), before their ReLU, and each with `_relu`
    after it.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv1_relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv2_relu = nn.ReLU()
        self.conv3 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.conv3_relu = nn.ReLU()
        self.fc1 = nn.Linear(24 * 4 * 4, 32)
        self.fc1_relu = nn.ReLU()
        self.fc2 = nn.Linear(32, classes)

    def forward(self, audio: Float[Tensor, "B 1 32 32"] | fx.Proxy) -> Float[Tensor, "B classes"] | fx.Proxy:
        """Class logits."""
        maps = self.conv1_relu(self.conv1(audio))
        maps = self.conv2_relu(self.conv2(maps))
        maps = self.conv3_relu(self.conv3(maps))
        logits: Tensor = self.fc2(self.fc1_relu(self.fc1(maps.flatten(1))))
        return logits


class SmallMultimodal(nn.Module):
    """Images (B, 1, 8, 8) and log-mel spectrograms (B, 1, 32, 32) -> logits (B, classes); 46,690 parameters.

    Taps: the convolutions and fc1 (48,), before their ReLU, and each with `_relu` after it; concat_identity (64,), the
    image's 24 features first. Unlike CNN-I, the head has an activation between its two layers.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.image_conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.image_conv1_relu = nn.ReLU()
        self.image_conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.image_conv2_relu = nn.ReLU()
        self.image_fc = nn.Linear(24 * 4 * 4, 24)
        self.audio_conv1 = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.audio_conv1_relu = nn.ReLU()
        self.audio_conv2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.audio_conv2_relu = nn.ReLU()
        self.audio_conv3 = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.audio_conv3_relu = nn.ReLU()
        self.audio_fc = nn.Linear(32 * 4 * 4, 40)
        self.concat_identity = nn.Identity()
        self.fc1 = nn.Linear(24 + 40, 48)
        self.fc1_relu = nn.ReLU()
        self.fc2 = nn.Linear(48, classes)

    def forward(
        self, image: Float[Tensor, "B 1 8 8"] | fx.Proxy, audio: Float[Tensor, "B 1 32 32"] | fx.Proxy
    ) -> Float[Tensor, "B classes"] | fx.Proxy:
        """Class logits."""
        maps = self.image_conv1_relu(self.image_conv1(image))
        maps = self.image_conv2_relu(self.image_conv2(maps))
        seen = functional.relu(self.image_fc(maps.flatten(1)))
        maps = self.audio_conv1_relu(self.audio_conv1(audio))
        maps = self.audio_conv2_relu(self.audio_conv2(maps))
        maps = self.audio_conv3_relu(self.audio_conv3(maps))
        heard = functional.relu(self.audio_fc(maps.flatten(1)))
        joint = self.concat_identity(torch.cat([seen, heard], dim=1))
        logits: Tensor = self.fc2(self.fc1_relu(self.fc1(joint)))
        return logits
