"""Cost of one whole job of distillation from files: this library / torchdistill 1.1.5 on the same files and networks.

torchdistill imports torchvision, which does not import beside every build of torch: where it does not, this script
measures nothing and says so. The job is that of kd_job.py, with torchdistill's `DistillationBox`, its KDLoss, a loader
with as many workers, a validation after each epoch, and a test.
"""

import logging
import os
import shutil

import torch
from kd_job import BATCH, EPOCHS, LIMIT, ROWS, WORKERS, Files, draw, module, recipe_of
from measure import Script, ratios
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SequentialSampler

from crossdistill import run
from crossdistill.runtime.progress import Quiet


class Logits(nn.Module):
    """A network of the table that returns its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 10)."""
        return self.network(pictures)["logits"]


def settings() -> dict:
    """The job in torchdistill's words."""

    def loader(split: str, sampler: type) -> dict:
        kwargs = {"batch_size": BATCH, "num_workers": WORKERS, "persistent_workers": True}
        return {"dataset_id": split, "sampler": {"class_or_func": sampler}, "kwargs": kwargs, "requires_supp": True}

    ends = {f"{one}_module_path": "." for one in ("student", "teacher")} | {
        f"{one}_module_io": "output" for one in ("student", "teacher")
    }
    term = {"key": "KDLoss", "kwargs": {**ends, "temperature": 4.0, "alpha": 0.5, "reduction": "batchmean"}}
    return {
        "num_epochs": EPOCHS,
        "train_data_loader": loader("train", RandomSampler),
        "val_data_loader": loader("val", SequentialSampler),
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": term, "weight": 1.0}}},
        },
    }


def main() -> None:
    """Measure whole jobs."""
    script = Script(__file__)
    try:
        from torchdistill.core.distillation import get_distillation_box
    except (ImportError, RuntimeError) as error:
        print(f"  not measured: torchdistill does not import here ({str(error)[:100]})", flush=True)
        script.save()
        return
    logging.disable(logging.INFO)
    folder = draw(script.scratch / "pictures")
    os.environ["CROSSDISTILL_CACHE"] = str(script.scratch / "cache")

    def ours() -> None:
        for made in ("cache", "out"):
            shutil.rmtree(script.scratch / made, ignore_errors=True)
        recipe = recipe_of(folder, script.device.type)
        run(recipe, script.scratch / "out", display=Quiet())

    def theirs() -> None:
        student, teacher = (Logits(module(name)).to(script.device) for name in ("cifar-resnet8", "cifar-resnet32"))
        data = {split: Files(folder / split) for split in ROWS}
        box = get_distillation_box(teacher, student, data, settings(), script.device, None, False, 1)

        def accuracy(loader: object) -> float:
            box.student_model.eval()
            with torch.no_grad():
                hits = [(box.student_model(x.to(script.device)).argmax(1).cpu() == y).float() for x, y, *_ in loader]
            return float(torch.cat(hits).mean())

        for epoch in range(EPOCHS):
            box.pre_epoch_process(epoch=epoch)
            for x, y, *more in box.train_data_loader:
                loss = box.forward_process(x.to(script.device), y.to(script.device), *more)
                box.post_forward_process(loss=loss)
            accuracy(box.val_data_loader)
            box.post_epoch_process()
        accuracy(torch.utils.data.DataLoader(data["test"], BATCH, num_workers=WORKERS))

    measured = ratios(*script.alternate([ours, theirs], 3, warm=0))
    script.ratio("a job of kd from JPEG files, resnet32 to resnet8, 5 epochs and test / torchdistill", measured, LIMIT)


if __name__ == "__main__":
    main()
