"""The shared setup of a family of recipes: data, a network for each role, and lengths of training."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from crossdistill.data.config import DataConfig
from crossdistill.method import Activation
from crossdistill.methods.kd import KD
from crossdistill.methods.route import Route
from crossdistill.recipe import NetworkConfig
from crossdistill.stage import OptimizerConfig

Kind = Literal["mm", "cm", "mm+cm"]

Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]

MULTIMODAL = "mm"
"""Name of the teacher that reads every modality."""


class Length(BaseModel):
    """Epochs and learning rate of one kind of stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=0)
    learning_rate: float = Field(gt=0)


SCARCE = 0.5
"""Below this fraction of labels the teachers' share of the loss is larger and does not decay."""


def kd_for(labelled: float) -> KD:
    """KD's weights: the published ones, or, with few labels, the best ones on validation of av-digits (LOG.md)."""
    return KD(alpha=0.9, temperature=2.0, decay_every=None) if labelled < SCARCE else KD()


def route_for(labelled: float) -> Route:
    """Routing's weights: the published ones, or, with few labels, the best ones on validation of av-digits (LOG.md)."""
    if labelled >= SCARCE:
        return Route()
    return Route(weight_distil=10.0, weight_task=0.25, temperature=2.0, distil_decay_every=None)


def activated(*layers: str) -> dict[str, str]:
    """The taps after the activations of layers, by the naming scheme of the models here."""
    return {layer: f"{layer}_relu" for layer in layers}


class ExperimentSetup(BaseModel):
    """Data, networks and lengths of training from which every method's recipe is built, for equal conditions.

    `networks` maps each modality to its network, and `multimodal` reads all modalities. `taps` names for each network
    the intermediate and the late layer that masks and hints act on. `maps` names for each network, and each modality
    that it reads, the layers with spatial features, shallow first. Both are taps before the activation; `activated`
    maps each layer to its tap after the activation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: SerializeAsAny[DataConfig]
    networks: Mapping[str, NetworkConfig]
    multimodal: NetworkConfig
    taps: Mapping[str, tuple[str, ...]]
    maps: Mapping[str, Mapping[str, tuple[str, ...]]] = Field(default_factory=dict)
    activated: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    penultimates: Mapping[str, str] = Field(default_factory=dict)
    """For each network, the input of its last layer; by default the last of its `taps`, after the activation."""
    unflattened: Mapping[str, str] = Field(default_factory=dict)
    """For each network whose penultimate layer is flattened, the map before it: for averages over positions."""
    hints: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = Field(default_factory=dict)
    """For each student and teacher, the layers of both that the released FitNets compare; by default their `taps`."""
    batch_size: int = 64
    channels_last: bool = False
    supervised: Length
    """Training from labels: teachers, and the student alone."""
    collaborate: Length
    specialise: Length
    distil: Length
    """The final stage, in which the student is distilled."""
    width_factor: int = Field(2, ge=1)
    """Attention in masks has (values at the tap / width_factor) dimensions."""
    kd: KD = KD()
    route: Route = Route()
    """Weights and schedules of routing: the published ones, or the best ones on validation."""

    def others(self, modality: str) -> tuple[str, ...]:
        """All modalities but this one, in the setup's order: the cross-modal teachers of its student (Eq. 5)."""
        return tuple(name for name in self.networks if name != modality)

    def teachers(self, modality: str, kind: Kind) -> dict[str, NetworkConfig]:
        """The teachers of a student of this modality, by name; a cross-modal teacher has the name of its modality."""
        multimodal = {MULTIMODAL: self.multimodal} if "mm" in kind else {}
        cross_modal = {name: self.networks[name] for name in self.others(modality)} if "cm" in kind else {}
        return {**multimodal, **cross_modal}

    def spatial(self, network: str, modality: str, activation: Activation) -> tuple[str, ...] | None:
        """A network's spatial layers, those of this modality where they exist; None: no spatial layers."""
        by_modality = self.maps.get(network, {})
        layers = by_modality.get(modality) or next(iter(by_modality.values()), None)
        return None if layers is None else tuple(self.tap(network, layer, activation) for layer in layers)

    def tap(self, network: str, layer: str, activation: Activation) -> str:
        """The tap before or after a layer's activation; the layer itself where it has none."""
        return layer if activation == "before" else self.activated.get(network, {}).get(layer, layer)

    def penultimate(self, network: str) -> str:
        """The tap at the input of a network's last layer."""
        return self.penultimates.get(network) or self.tap(network, self.taps[network][-1], "after")

    def optimizer(self, length: Length) -> OptimizerConfig:
        """Adam at a constant rate, as in all stages of the reference."""
        return OptimizerConfig(learning_rate=length.learning_rate)
