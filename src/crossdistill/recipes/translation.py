"""Recipes of feature translation: from all teachers at once, and through a large proxy (EUPE, arXiv 2603.22387)."""

from collections.abc import Mapping, Sequence

from crossdistill.errors import SettingError
from crossdistill.methods.translate import Translate
from crossdistill.network import Network
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes.parts import MethodPlan, from_labels, stage_of
from crossdistill.recipes.setup import ExperimentSetup
from crossdistill.stage import Stage

PROXY = "proxy"
"""Name of the proxy among the members."""


def translate(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Teachers from labels; then the student learns their features, without labels (RADIO, Theia, PHI-S)."""
    method = _translate(setup, student, teachers)
    return (
        *from_labels(setup, teachers),
        stage_of("translate", method, setup, setup.distil, teachers=tuple(teachers)),
    )


def proxy(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """A large proxy learns the features of all teachers, and the student those of the proxy alone (EUPE)."""
    reads = _reads(proxy_of(setup))
    to_proxy = Translate(teacher_taps={name: () for name in teachers if not reads & _reads(setup.network(name))})
    to_student = Translate(teacher_taps={} if student in reads else {PROXY: ()})
    return (
        *from_labels(setup, teachers),
        stage_of("translate-proxy", to_proxy, setup, setup.distil, learner=PROXY, teachers=tuple(teachers)),
        stage_of("translate", to_student, setup, setup.distil, teachers=(PROXY,)),
    )


def proxy_of(setup: ExperimentSetup) -> NetworkConfig | Network:
    """The proxy of a setup: the one that it names, or another network of its multimodal architecture.

    Raises:
        SettingError: it has neither.
    """
    if setup.proxy is not None:
        return setup.proxy
    if isinstance(setup.multimodal, NetworkConfig):
        return setup.multimodal.model_copy(update={"weights": None})
    raise SettingError(
        "the method proxy needs a large network between teachers and student, and this setup names none: give "
        "ExperimentSetup(proxy=...), or take the method translate, which has none"
    )


def _translate(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> Translate:
    """Embeddings of all teachers, and the deepest spatial layer of those that read the student's modality."""
    mine = setup.spatial(student, student, Translate.activation)
    theirs: dict[str, tuple[str, ...]] = {}
    for name in teachers:
        maps, reads = setup.spatial(name, student, Translate.activation), _reads(setup.network(name))
        # Of several modalities, the setup says which layers are those of the student's.
        if student not in reads or (len(reads) > 1 and name not in setup.maps):
            theirs[name] = ()
        elif maps:
            theirs[name] = maps[-1:]
    return Translate(taps=mine[-1:] if mine else None, teacher_taps=theirs)


def _reads(network: NetworkConfig | Network) -> set[str]:
    """The modalities that a network reads, whatever their rendering."""
    modalities = network.reads if isinstance(network, Network) else network.modalities
    return {modality.partition("@")[0] for modality in modalities}


TRANSLATION: Mapping[str, MethodPlan] = {
    "translate": MethodPlan(translate, "mm+cm", ("mm", "cm")),
    "proxy": MethodPlan(proxy, "mm+cm", ("mm", "cm"), added=lambda setup: {PROXY: proxy_of(setup)}),
}
"""Plans of feature translation."""
