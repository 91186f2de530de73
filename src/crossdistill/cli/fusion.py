"""`crossdistill tune-fusion`: settings of a fused teacher, chosen on the validation split without training."""

import json
from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli.options import AsJson, Out, OwnRecipe, Seed, Settings
from crossdistill.runtime.escaping import visible

fusion = typer.Typer(rich_markup_mode=None)


@fusion.command("tune-fusion")
def tune_fusion_command(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe as `crossdistill run` takes it, or the folder of a run."),
    ],
    settings: Settings = None,
    seed: Seed = None,
    own_recipe: OwnRecipe = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Choose alpha, temperatures and the weight of RichKD's fused logits on the validation split, without training.

    Reads the stored logits of the teachers, and fills what is missing. Prints a table and the settings to use:

    crossdistill tune-fusion folder/richkd-l --set data.path=DIR --set teachers.cnn=RUN --set teachers.clip=NAME
    """
    from crossdistill.recipes import make
    from crossdistill.recipes.of_run import of_run
    from crossdistill.runtime.progress import Terminal
    from crossdistill.training.tune_fusion import tune_fusion

    path = Path(recipe)
    run = path.parent if path.name == "recipe.yaml" else path
    if (run / "recipe.yaml").is_file():
        made, folder = of_run(run, own_recipe, settings or [], "tune-fusion"), run
    else:
        made = make(recipe, settings or [], seed)
        folder = Path("runs") / f"{made.name.replace('/', '-')}-{made.learner}-seed{made.seed}"
    with Terminal() as terminal:
        choice = tune_fusion(made, out or folder, display=terminal)
    typer.echo(json.dumps(choice.as_data()) if as_json else visible(choice.text(), lines=True))
