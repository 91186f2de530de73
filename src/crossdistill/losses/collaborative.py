"""Collaborative initialisation: divergences between all pairs of members (MST-Distill, stage 1)."""

from collections.abc import Mapping
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.errors import SettingError
from crossdistill.losses.kl import kl_divergence, log_probabilities


def collaborative_terms(
    logits: Mapping[str, Float[Tensor, "B C *pixels"]],
    temperature: float,
    detach: bool = False,
    squared: bool = True,
) -> dict[tuple[str, str], Float[Tensor, " B"]]:
    """T² · KL(guide ‖ learner) for every ordered pair of members, keyed (learner, guide): M · (M - 1) terms.

    MST-Distill, equations 3 and 4 (arXiv 2507.07015), with the T² of its released code. Each member's softmax is
    computed only once.

    Args:
        logits: the members' logits by name, two members or more, all of the same shape.
        temperature: dimensionless, above 0.
        detach: the guide of a pair has no gradient (mutual learning as in DML, arXiv 1706.00384); by default both
            sides have one (joint training, the paper's choice).
        squared: multiply by T².

    Raises:
        SettingError: fewer than two members, or a temperature of zero or below.
        ShapeError: members differ in shape.
    """
    if len(logits) < 2:
        raise SettingError(f"collaboration needs at least two members, found {len(logits)}: {', '.join(logits)}")
    factor = temperature**2 if squared else 1.0
    learners = {name: log_probabilities(value, temperature) for name, value in logits.items()}
    guides = {name: value.detach() if detach else value for name, value in learners.items()}
    return {
        (learner, guide): factor * kl_divergence(guides[guide], learners[learner])
        for learner, guide in permutations(logits, 2)
    }


def collaborative_kl(
    logits: Mapping[str, Float[Tensor, "B C *pixels"]],
    temperature: float,
    detach: bool = False,
    squared: bool = True,
) -> Float[Tensor, " B"]:
    """The sum of `collaborative_terms` over all ordered pairs; arguments and errors are the same."""
    return torch.stack(list(collaborative_terms(logits, temperature, detach, squared).values())).sum(dim=0)
