"""The weights from which a stage starts, where they are not those that earlier stages left: first ones, or merged."""

import torch

from crossdistill.planning.merged_start import merged_members, merged_state
from crossdistill.planning.plan import Job, Plan
from crossdistill.run_folder.checkpoint import restore
from crossdistill.runtime.hashing import derived_seed
from crossdistill.stage import MergeConfig
from crossdistill.training.evaluation import batches

ALIGNED_ROWS, AT_ONCE = 200, 8
"""Training rows whose activations align the units of networks, and rows that are read at once."""


def set_start(plan: Plan, job: Job, device: torch.device) -> bool:
    """Give the learner the weights from which the stage starts, and seed it.

    A stage that merges members takes the modules of its method from the stages that trained them last; returns whether
    these have all of them.
    """
    if job.initial is not None:
        restore({job.student.name: plan.members[job.student.name]}, job.initial)
    complete = job.stage.merge is not None and _merge(plan, job, job.stage.merge, device)
    torch.manual_seed(derived_seed("stage", plan.recipe.seed, job.stage.name))
    return complete


@torch.no_grad()
def _merge(plan: Plan, job: Job, config: MergeConfig, device: torch.device) -> bool:
    learner, names = plan.members[job.student.name], merged_members(job.stage, plan.recipe.learner)
    train, source = job.dataset.splits["train"], torch.Generator().manual_seed(derived_seed("align", plan.recipe.seed))
    rows = train[torch.randperm(len(train), generator=source)[:ALIGNED_ROWS]]
    read = batches(job.dataset, rows, device, AT_ONCE, only=learner.reads)
    learner.module.load_state_dict(merged_state(config, learner, [plan.members[name] for name in names], read))
    own = job.method.state_dict()
    last = {other.student.name: other for other in plan.jobs if other.index < job.index and other.student.name in names}
    found = {key: value for other in last.values() for key, value in other.method.state_dict().items()}
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    job.method.load_state_dict({**own, **fitting})
    return bool(own) and fitting.keys() == own.keys()
