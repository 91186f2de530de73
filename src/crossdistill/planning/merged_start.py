"""The weights from which a learner starts a stage, merged from those of other members."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.errors import CrossdistillError, SettingError
from crossdistill.method import STUDENT
from crossdistill.models.alignment import check_alignable, permutations_to, permuted
from crossdistill.models.merging import check_alike, check_weights, merge
from crossdistill.network import Network
from crossdistill.stage import MergeConfig, Stage

LONGEST = 80_000
"""Values of a row that are read for the alignment: 5 s at 16 kHz."""


def merged_members(stage: Stage, student: str) -> list[str]:
    """The members that a stage merges; `student` is the name of the recipe's student."""
    return [student if name == STUDENT else name for name in stage.merged]


def check_merge(stage: Stage, student: str, learner: str, members: Mapping[str, Network]) -> list[str]:
    """Faults of a stage that merges members: weights that do not fit, or networks of other shapes than the learner."""
    if stage.merge is None:
        return []
    names, weights = merged_members(stage, student), list(stage.merge.weights.values())
    if learner in names:
        return [f"merge: {learner!r} is the learner itself, which is merged from other members"]
    own = members[learner].module.state_dict()
    faults = []
    try:
        if len(names) == 1 and (weights != [1.0] or stage.merge.method != "linear" or stage.merge.permute):
            raise SettingError(
                f"merge: one member is copied by weight 1, method linear and permute=false; found {weights[0]:g}, "
                f"{stage.merge.method} and permute={str(stage.merge.permute).lower()}"
            )
        if len(names) > 1:
            check_weights(len(names), weights, stage.merge.method, own, {}, list(own))
        if stage.merge.permute:
            check_alignable(members[learner].module)
    except CrossdistillError as error:
        faults.append(str(error))
    for name in names:
        try:
            check_alike(own, members[name].module.state_dict(), f"member {name!r}")
        except CrossdistillError as error:
            faults.append(str(error))
    return faults


def merged_state(
    config: MergeConfig, base: Network, networks: Sequence[Network], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """The state dict merged from networks, whose order is that of the weights; `base` is their common ancestor.

    `batches` are read for the alignment of units alone, one row after another without its padding.
    """
    states = [dict(network.module.state_dict()) for network in networks]
    if config.permute:
        waves = [wave for batch in batches for wave in _waves(batch, base.reads[0])]
        reference = networks[0].module
        orders = [permutations_to(reference, network.module, waves) for network in networks[1:]]
        states[1:] = [permuted(state, order) for state, order in zip(states[1:], orders, strict=True)]
    if len(states) == 1:
        return states[0]
    ancestor = None if config.method == "linear" else base.module.state_dict()
    weights = list(config.weights.values())
    # A config has a value for each setting; those that the method does not read are at their defaults.
    keep = config.keep if config.method == "ties" else None
    scale = None if config.method == "linear" else config.scale
    return merge(states, weights, base=ancestor, method=config.method, keep=keep, scale=scale)


def _waves(batch: Batch, modality: str) -> list[Tensor]:
    value = batch.read(modality, "alignment")
    if isinstance(value, Tensor):
        return [row[None, :LONGEST] for row in value]
    lengths = value["lengths"].tolist() if "lengths" in value else [value["values"].shape[1]] * len(value["values"])
    return [row[None, : min(length, LONGEST)] for row, length in zip(value["values"], lengths, strict=True)]
