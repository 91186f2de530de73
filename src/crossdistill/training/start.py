"""The weights from which a stage starts, where they are not those that earlier stages left: first ones, or merged."""

import torch

from crossdistill.planning.merged_start import merged_members, merged_state
from crossdistill.planning.plan import Job, Plan
from crossdistill.run_folder.checkpoint import restore
from crossdistill.training.evaluation import batches

ALIGNED_ROWS, AT_ONCE = 200, 8
"""Training rows whose activations align the units of networks, and rows that are read at once."""


@torch.no_grad()
def set_start(plan: Plan, job: Job, device: torch.device) -> bool:
    """Give the learner the weights from which the stage starts; returns whether its method has trained ones too.

    A stage that merges members takes the modules of its method from the stages that trained them last.
    """
    learner, config = plan.members[job.student.name], job.stage.merge
    if job.initial is not None:
        restore({job.student.name: learner}, job.initial)
    if config is None:
        return False
    names = merged_members(job.stage, plan.recipe.learner)
    rows = job.dataset.splits["train"][:ALIGNED_ROWS]
    read = batches(job.dataset, rows, device, AT_ONCE, only=learner.reads)
    learner.module.load_state_dict(merged_state(config, learner, [plan.members[name] for name in names], read))
    own = job.method.state_dict()
    last = {other.student.name: other for other in plan.jobs if other.index < job.index and other.student.name in names}
    found = {key: value for other in last.values() for key, value in other.method.state_dict().items()}
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    job.method.load_state_dict({**own, **fitting})
    return bool(own) and fitting.keys() == own.keys()
