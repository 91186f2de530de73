"""The shared setup of a family of recipes: data, a network for each role, and lengths of training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, SerializeAsAny, model_serializer, model_validator
from pydantic_core import to_jsonable_python

from crossdistill.backends.names import backend_of
from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError, nearest
from crossdistill.method import Activation
from crossdistill.methods.kd import KD
from crossdistill.methods.route import Route
from crossdistill.models import find_model
from crossdistill.models.checkpoint import keeps_weights
from crossdistill.network import Network
from crossdistill.recipe import NetworkConfig
from crossdistill.stage import OptimizerConfig

Kind = Literal["mm", "cm", "mm+cm", "named"]
"""Teachers of a student: the multimodal one, those of all other modalities, both, or only those that a setup names."""

Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]

MULTIMODAL = "mm"
"""Name of the teacher that reads every modality."""


class Length(BaseModel):
    """Epochs and learning rate of one kind of stage, and its optimizer where that is not Adam at a constant rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=0)
    learning_rate: float = Field(gt=0)
    settings: OptimizerConfig | None = None
    """Optimizer besides its rate and milestones; None: Adam at a constant rate, as in all stages of MST-Distill."""
    milestones: tuple[float, ...] = ()
    """Parts of the stage (0.5 is its middle) after which the rate is multiplied by the optimizer's `gamma`."""

    @model_serializer(mode="wrap")
    def _plain(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Comparisons written before these fields existed stay valid.
        return {name: value for name, value in handler(self).items() if value not in (None, (), [])}

    def optimizer(self) -> OptimizerConfig:
        """The optimizer of a stage of this length."""
        if self.settings is None:
            return OptimizerConfig(learning_rate=self.learning_rate)
        reached = tuple(round(part * self.epochs, 6) for part in self.milestones) if self.epochs else ()
        added: dict[str, Any] = {"schedule": "milestones", "milestones": reached} if reached else {}
        return self.settings.model_copy(update={"learning_rate": self.learning_rate, **added})


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


def _of_table(network: NetworkConfig, what: Literal["layers", "maps"]) -> tuple[str, ...]:
    """What the table of models says of a network; nothing of networks of other libraries."""
    if backend_of(network.model) is not None:
        return ()
    model = find_model(network.model)
    return model.layers if what == "layers" else model.maps


class ExperimentSetup(BaseModel):
    """Data, networks and lengths of training from which every method's recipe is built, for equal conditions.

    `networks` maps each modality to its network, and `multimodal` reads all modalities. `taps` names for each network
    the intermediate and the late layer that masks and hints act on. `maps` names for each network, and each modality
    that it reads, the layers with spatial features, shallow first. Both are taps before the activation; `activated`
    maps each layer to its tap after the activation.
    Without an entry, they are those of the table of models, or the last two taps of a `Network`.

    `data` and networks may be objects of the running program.

    Raises:
        pydantic.ValidationError: a field of the wrong type, or two teachers of one name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: SerializeAsAny[DataConfig] | InstanceOf[Dataset]
    networks: Mapping[str, NetworkConfig | InstanceOf[Network]] = Field(min_length=1)
    multimodal: NetworkConfig | InstanceOf[Network] | None = None
    named_teachers: Mapping[str, NetworkConfig | InstanceOf[Network]] = Field(default_factory=dict)
    """Further teachers of every student, by name; trained from labels, except for `frozen_teachers`."""
    frozen_teachers: frozenset[str] = frozenset()
    """Names of teachers that keep their weights, such as pre-trained ones."""
    proxy: NetworkConfig | InstanceOf[Network] | None = None
    """The large network between teachers and student of the method `proxy`; by default one of the multimodal
    architecture."""
    taps: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    maps: Mapping[str, Mapping[str, tuple[str, ...]]] = Field(default_factory=dict)
    activated: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    penultimates: Mapping[str, str] = Field(default_factory=dict)
    """For each network, the input of its last layer; by default the last of its `taps`, after the activation."""
    unflattened: Mapping[str, str] = Field(default_factory=dict)
    """For each network whose penultimate layer is flattened, the map before it: for averages over positions."""
    hints: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = Field(default_factory=dict)
    """For each student and teacher, the layers of both that the released FitNets compare; by default their `taps`."""
    batch_size: int = Field(64, ge=1)
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
    published: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    """Settings of methods by name, where those published for these data are not the defaults."""

    def others(self, modality: str) -> tuple[str, ...]:
        """All modalities but this one, in the setup's order: the cross-modal teachers of its student (Eq. 5)."""
        return tuple(name for name in self.networks if name != modality)

    @model_validator(mode="after")
    def _names(self) -> "ExperimentSetup":
        taken = {MULTIMODAL, "proxy", *self.networks} & set(self.named_teachers)
        if taken:
            raise ValueError(f"named_teachers: {', '.join(sorted(taken))} is a teacher's name already")
        unknown = self.frozen_teachers - {MULTIMODAL, *self.networks, *self.named_teachers}
        if unknown:
            known = [MULTIMODAL, *self.networks, *self.named_teachers]
            raise ValueError(f"frozen_teachers: {nearest(sorted(unknown)[0], known)}")
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of teachers that the setup has."""
        several = len(self.networks) > 1
        has: dict[Kind, bool] = {
            "mm": self.multimodal is not None,
            "cm": several,
            "mm+cm": several and self.multimodal is not None,
            "named": bool(self.named_teachers),
        }
        return tuple(kind for kind, there in has.items() if there)

    def kind(self, wanted: Kind | None, default: Kind, others: Sequence[Kind]) -> Kind:
        """The kind of teachers of a method: the `wanted` one, or the first of its kinds that the setup has.

        Raises:
            SettingError: the setup has no such teachers, or none at all.
        """
        if wanted is not None:
            if wanted not in self.kinds:
                raise SettingError(f"teachers={wanted}: this setup has {', '.join(self.kinds) or 'no teachers'}")
            return wanted
        possible: list[Kind] = [kind for kind in (default, *others, "named") if kind in self.kinds]
        if not possible:
            raise SettingError(
                f"a method with {default} teachers has none here: the setup has "
                f"{', '.join(self.kinds) or 'one modality and no named_teachers'}; name one with "
                "--set teachers.NAME=NETWORK, or in named_teachers"
            )
        return possible[0]

    def teachers(self, modality: str, kind: Kind) -> dict[str, NetworkConfig | Network]:
        """The teachers of a student of this modality, by name; a cross-modal teacher has the name of its modality."""
        teachers: dict[str, NetworkConfig | Network] = {}
        if kind in ("mm", "mm+cm") and self.multimodal is not None:
            teachers[MULTIMODAL] = self.multimodal
        if kind in ("cm", "mm+cm"):
            teachers |= {name: self.networks[name] for name in self.others(modality)}
        return {**teachers, **self.named_teachers}

    def trainable(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The teachers among these that are trained."""
        return tuple(name for name in teachers if name not in self.frozen_teachers and not self._has_weights(name))

    def _has_weights(self, name: str) -> bool:
        member = {**self.networks, **self.named_teachers}.get(name)
        return isinstance(member, NetworkConfig) and keeps_weights(member.weights, member.tune)

    def network(self, name: str) -> NetworkConfig | Network:
        """A student or teacher by its name."""
        networks = {**self.networks, **self.named_teachers}
        return self.multimodal if name == MULTIMODAL and self.multimodal is not None else networks[name]

    def layers(self, network: str) -> tuple[str, ...]:
        """The intermediate and the late layer of a network, before their activation.

        Raises:
            SettingError: nothing names a layer of it.
        """
        member = self.network(network)
        layers = self.taps.get(network)
        if layers is None:
            layers = member.taps[-2:] if isinstance(member, Network) else _of_table(member, "layers")
        if not layers:
            raise SettingError(
                f"nothing says which layers of {network!r} a method compares: give Network(..., taps=[...]), or the "
                f"setup's taps={{{network!r}: (INTERMEDIATE, LATE)}}"
            )
        return layers

    def spatial(self, network: str, modality: str, activation: Activation) -> tuple[str, ...] | None:
        """A network's spatial layers, those of this modality where they exist; None: no spatial layers."""
        by_modality = self.maps.get(network, {})
        layers = by_modality.get(modality) or next(iter(by_modality.values()), None)
        member = self.network(network)
        if layers is None and isinstance(member, NetworkConfig):
            layers = _of_table(member, "maps") or None
        return None if layers is None else tuple(self.tap(network, layer, activation) for layer in layers)

    def tap(self, network: str, layer: str, activation: Activation) -> str:
        """The tap before or after a layer's activation; the layer itself where it has none."""
        if activation == "before":
            return layer
        if network in self.activated:
            return self.activated[network].get(layer, layer)
        member = self.network(network)
        if isinstance(member, Network) or backend_of(member.model) is not None:
            return layer
        return find_model(member.model).activated(layer)

    def penultimate(self, network: str) -> str:
        """The tap at the input of a network's last layer."""
        return self.penultimates.get(network) or self.tap(network, self.layers(network)[-1], "after")

    def plain(self) -> dict[str, Any]:
        """The fields besides `data` as plain values, networks of the program by what they read and their code."""

        def network(member: NetworkConfig | Network) -> Any:
            if isinstance(member, NetworkConfig):
                return member.model_dump(mode="json")
            code = member.code_text() if member.is_made else member.name
            return [member.name, list(member.reads), list(member.taps), code]

        values: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in ("networks", "named_teachers"):
                values[name] = {key: network(member) for key, member in value.items()}
            elif isinstance(value, NetworkConfig | Network):
                values[name] = network(value)
            elif name == "published" and not value:
                # Comparisons written before the field existed stay valid.
                continue
            elif name != "data":
                values[name] = to_jsonable_python(value)
        return values

    def with_epochs(self, epochs: int) -> "ExperimentSetup":
        """The same setup with so many epochs of every stage."""
        names = ("supervised", "collaborate", "specialise", "distil")
        lengths = {name: getattr(self, name).model_copy(update={"epochs": epochs}) for name in names}
        return self.model_copy(update=lengths)

    def optimizer(self, length: Length) -> OptimizerConfig:
        """The optimizer of a stage: Adam at a constant rate, or that of its length."""
        return length.optimizer()
