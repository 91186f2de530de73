"""A method in a training loop of your own: AdamW, a warm-up and a DataLoader; no recipe, no runner, no folder.

    python examples/own_loop.py

A few seconds on a CPU.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, StackDataset

from crossdistill import Distiller, Network
from crossdistill.methods import KD

torch.manual_seed(0)
targets = torch.randint(4, (2000,))
camera = torch.randn(4, 16)[targets] + torch.randn(2000, 16)
radar = torch.randn(4, 8)[targets] + 1.5 * torch.randn(2000, 8)
loader = DataLoader(StackDataset(camera=camera[:1000], radar=radar[:1000], targets=targets[:1000]), 100, shuffle=True)
teacher = Network(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), reads="camera")
student = Network(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), reads="radar")


def train(distiller: Distiller, inputs: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(distiller.parameters(), 1e-2)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    for epoch in range(10):
        distiller.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            distiller(batch, batch.pop("targets")).backward()
            optimizer.step()
            warm_up.step()
    right = distiller.student(inputs[1000:]).argmax(1) == targets[1000:]
    print(f"{distiller.settings.name}: {right.float().mean():.3f}")


train(Distiller(teacher, method="supervised"), camera)
train(Distiller(student, {"camera": teacher}, KD(temperature=4.0)), radar)
