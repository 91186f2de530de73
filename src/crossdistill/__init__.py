"""Distil many teachers, of other modalities or domains, into one small student.

Train and compare:

    distill(data, student, teachers=[...])  a table, a folder or arrays in, a trained student out
    run(recipe, folder)              train a Recipe's stages, evaluate the student, return a Report
    Distiller(student, teachers, method)   a loss for your own training loop
    compare(setup, methods=[...])    methods side by side on your own data and networks, with paired statistics
    list_methods(), list_models()    names for Stage(method=...) and NetworkConfig(model=...)

A Recipe is made of:

    Dataset.from_arrays(...)         arrays by modality, targets, splits
    Network(module, reads=...)       any torch module, and the modalities that it reads
    Stage(method=..., epochs=...)    one method for a number of epochs

Use the student:

    load_student(folder)             the trained network, with predict(files) and logits(inputs)

The modules `losses` and `methods` work without a recipe too. Names are imported on first use, so that the command
line answers before torch is loaded.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from crossdistill import compare, losses, methods
    from crossdistill.bank.fused import Fused
    from crossdistill.batch import Batch, InputSpec
    from crossdistill.data.augmentation import Augmentation, OwnAugmentation, Variation, Variations
    from crossdistill.data.dataset import Dataset
    from crossdistill.distiller import Distiller
    from crossdistill.errors import CrossdistillError
    from crossdistill.method import DataSpec, Method, MethodConfig, Progress, Step, Term
    from crossdistill.methods import list_methods
    from crossdistill.models import list_models
    from crossdistill.network import Network
    from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal
    from crossdistill.recipe import NetworkConfig, Recipe
    from crossdistill.recipes.setup import ExperimentSetup
    from crossdistill.report import Report, Row
    from crossdistill.stage import OptimizerConfig, Stage
    from crossdistill.student import Student, load_student
    from crossdistill.teacher import Live, Masked, Teacher
    from crossdistill.training.one_call import distill
    from crossdistill.training.runner import run

_HOMES = {
    "Augmentation": "data.augmentation",
    "Batch": "batch",
    "CrossdistillError": "errors",
    "Cut": "outputs",
    "DataSpec": "method",
    "Dataset": "data.dataset",
    "Distiller": "distiller",
    "ExperimentSetup": "recipes.setup",
    "Fused": "bank.fused",
    "InputSpec": "batch",
    "Live": "teacher",
    "Masked": "teacher",
    "Method": "method",
    "MethodConfig": "method",
    "Network": "network",
    "NetworkConfig": "recipe",
    "OptimizerConfig": "stage",
    "OutputSpec": "outputs",
    "Outputs": "outputs",
    "OwnAugmentation": "data.augmentation",
    "Progress": "method",
    "Recipe": "recipe",
    "Report": "report",
    "Row": "report",
    "Signal": "outputs",
    "Stage": "stage",
    "Step": "method",
    "Student": "student",
    "Teacher": "teacher",
    "Term": "method",
    "Variation": "data.augmentation",
    "Variations": "data.augmentation",
    "distill": "training.one_call",
    "list_methods": "methods",
    "list_models": "models",
    "load_student": "student",
    "run": "training.runner",
}

_MODULES = {"compare", "losses", "methods"}

__all__ = [
    "Augmentation",
    "Batch",
    "CrossdistillError",
    "Cut",
    "DataSpec",
    "Dataset",
    "Distiller",
    "ExperimentSetup",
    "Fused",
    "InputSpec",
    "Live",
    "Masked",
    "Method",
    "MethodConfig",
    "Network",
    "NetworkConfig",
    "OptimizerConfig",
    "OutputSpec",
    "Outputs",
    "OwnAugmentation",
    "Progress",
    "Recipe",
    "Report",
    "Row",
    "Signal",
    "Stage",
    "Step",
    "Student",
    "Teacher",
    "Term",
    "Variation",
    "Variations",
    "__version__",
    "compare",
    "distill",
    "list_methods",
    "list_models",
    "load_student",
    "losses",
    "methods",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "Want":
        warnings.warn("Want is called Signal now; the old name will be removed in version 0.2", DeprecationWarning, 2)
        name = "Signal"
    if name in _MODULES:
        return importlib.import_module(f"crossdistill.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'crossdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crossdistill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
