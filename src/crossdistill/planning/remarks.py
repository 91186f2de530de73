"""Remarks on a plan that a run shows before training: parameters that do not train, and rows with absent inputs."""

from collections.abc import Collection, Mapping

import torch

from crossdistill.data.dataset import Dataset
from crossdistill.network import Network
from crossdistill.planning.preflight import seen_rows


def frozen_parameters(networks: Mapping[str, Network], trained: Collection[str]) -> list[str]:
    """One sentence for each network that trains in part: some of its parameters have requires_grad=False."""
    remarks = []
    for name, network in networks.items():
        if name in trained and network.frozen:
            names = sorted(network.frozen)
            total = sum(1 for _ in network.module.named_parameters(remove_duplicate=False))
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            remarks.append(
                f"{name!r} trains except for {len(names)} of its {total} parameters, which have requires_grad=False: "
                f"{', '.join(names[:3])}{more}"
            )
    return remarks


def absent_inputs(dataset: Dataset, networks: Mapping[str, Network]) -> list[str]:
    """One sentence for each network with absent inputs: the rows that it omits, and those that it reads in part."""
    remarks = []
    for name, network in networks.items():
        masks = {modality: dataset.present[modality] for modality in network.reads if modality in dataset.present}
        if not masks:
            continue
        every = torch.stack(list(masks.values())).all(0)
        some = torch.stack(list(masks.values())).any(0) if len(masks) == len(network.reads) else torch.ones_like(every)
        seen = seen_rows(dataset, network)
        remedy = "; Network(..., needs='any') would read them" if bool((some & ~seen).any()) else ""
        for what, rows in (("leaves out", ~seen), ("reads, with defaults for what is absent,", seen & ~every)):
            counts = {split: int(rows[index].sum()) for split, index in dataset.splits.items()}
            counted = ", ".join(f"{n:,} of {len(dataset.splits[s]):,} {s} rows" for s, n in counts.items() if n)
            if counted:
                remarks.append(f"{name!r} {what} {counted}, which lack {' or '.join(masks)}{remedy}")
    return remarks
