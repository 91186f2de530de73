"""The losses and the methods in a training loop of your own: plain PyTorch, no recipe, no runner, no folder.

    python examples/own_loop.py

A few seconds on a CPU.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crossdistill import Batch, DataSpec, Live, Network, Progress
from crossdistill.losses import distillation_kl
from crossdistill.methods import KD

EPOCHS, ROWS, SIZE = 10, 1000, 100
torch.manual_seed(0)
targets = torch.randint(4, (2 * ROWS,))
camera = torch.randn(4, 16)[targets] + torch.randn(2 * ROWS, 16)
radar = torch.randn(4, 8)[targets] + 1.5 * torch.randn(2 * ROWS, 8)


def network(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 4))


def accuracy(module: nn.Module, inputs: Tensor) -> float:
    """On the second half of the rows, which no loop has seen."""
    with torch.no_grad():
        return (module(inputs[ROWS:]).argmax(1) == targets[ROWS:]).float().mean().item()


teacher = network(16)
optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
for _ in range(EPOCHS):
    for rows in torch.randperm(ROWS).split(SIZE):
        optimizer.zero_grad()
        cross_entropy(teacher(camera[rows]), targets[rows]).backward()
        optimizer.step()
teacher.requires_grad_(False).eval()
print(f"teacher, camera: {accuracy(teacher, camera):.3f}")

# One: a loss is a function of tensors, and gives a value for each row.
student = network(8)
optimizer = torch.optim.Adam(student.parameters(), 1e-2)
for _ in range(EPOCHS):
    for rows in torch.randperm(ROWS).split(SIZE):
        optimizer.zero_grad()
        logits = student(radar[rows])
        distil = distillation_kl(logits, teacher(camera[rows]), temperature=4.0)
        (0.5 * cross_entropy(logits, targets[rows]) + 0.5 * distil.mean()).backward()
        optimizer.step()
print(f"student, radar, taught with a loss:   {accuracy(student, radar):.3f}")

# Two: a method is a module. It is built for the sizes of networks, given a batch and who plays, and gives its terms.
student = network(8)
learner, guide = Network(student, reads="radar"), Network(teacher, reads="camera")


def batch_of(rows: Tensor) -> Batch:
    return Batch({"camera": camera[rows], "radar": radar[rows]}, ids=rows, targets=targets[rows])


example = batch_of(torch.arange(2))
spec = DataSpec(rows=ROWS, classes=4)
method = KD(temperature=4.0, alpha=0.5).build(learner.probe(example), {"camera": guide.probe(example)}, spec)
cast = Live("radar", learner, trained=True), {"camera": Live("camera", guide)}
optimizer = torch.optim.Adam([*student.parameters(), *method.parameters()], 1e-2)
for epoch in range(EPOCHS):
    for number, rows in enumerate(torch.randperm(ROWS).split(SIZE)):
        optimizer.zero_grad()
        batch = batch_of(rows)
        step = method(batch, *cast, Progress(epoch, EPOCHS, number, ROWS // SIZE))
        step.loss(batch.total_rows).backward()
        optimizer.step()
        method.after_step(batch, step)
print(f"student, radar, taught with a method: {accuracy(student, radar):.3f}")
