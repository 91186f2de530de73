"""The model card of a student's folder: description, results, use and licences."""

from collections.abc import Sequence

from crossdistill.data.dataset import Dataset, Licence
from crossdistill.runtime.escaping import markdown, visible

SHOWN = 100
"""Maximum number of class names in a model card."""

COLUMNS = {"multi-label": "Labels", "regression": "Predicts"}
"""What a model card calls the columns of other targets than classes."""


MEASURED = "## Measured"
"""The heading of the results."""

OF_TRANSFORMERS = """Without crossdistill, transformers opens the model in this folder:

```python
from transformers import {0}

model = {0}.from_pretrained("this folder")
```
"""


def model_card(
    dataset: Dataset,
    title: str,
    table: str,
    teachers: Sequence[str],
    parameters: int,
    *,
    foreign: bool = False,
    ema: float | None = None,
    of_networks: Sequence[Licence] = (),
    opened_by: str | None = None,
    measured: str | None = None,
    embeds: bool = False,
) -> str:
    """The student's README: description, results, data and licences.

    A `foreign` student's module is not in the table of models and has to be passed in to load it. `ema` is the decay
    of the moving average; None: the weights are not an average. `of_networks` are the licences of pretrained networks.
    `opened_by` is the class of transformers that opens the folder; None: none does. `measured` says what the table
    shows; None: results on the test split. `embeds`: the student gives embeddings, and its logits, if any, are not
    trained.
    """
    own = "\n".join(_licence(licence) for licence in of_networks)
    networks = f"## Licences of pretrained networks\n\n{own}\n\n" if own else ""
    licences = "\n".join(_licence(licence) for licence in dataset.licences)
    plain = "" if opened_by is None else f"\n{OF_TRANSFORMERS.format(opened_by)}"
    argument = ", module=YourModule()" if foreign else ""
    classes = ", ".join(markdown(name) for name in dataset.classes[:SHOWN])
    more = f" and {len(dataset.classes) - SHOWN:,} more" if len(dataset.classes) > SHOWN else ""
    averaged = "" if ema is None else f"\nIts weights are an exponential moving average over training (decay {ema:g})."
    measured = measured or f"Test split of {markdown(dataset.name)}; model selection used the validation split only."
    call = "embeddings" if embeds or not dataset.classes else "predict"
    return f"""# {markdown(title)}

A student of {parameters:,} parameters, distilled with crossdistill.{averaged}
Teachers: {", ".join(map(markdown, teachers)) or "none, labels alone"}.
{COLUMNS.get(dataset.task, "Classes")}: {classes or "none, it gives embeddings"}{more}.

{MEASURED}

{measured}

{table}
{visible(dataset.about, lines=True)}

## Licences of the data

{licences or "- not stated"}

{networks}## Use

```python
from crossdistill import load_student

student = load_student("this folder"{argument})
student.{call}(["a file"])
```
{plain}"""


def without_results(card: str) -> str:
    """A card whose results are replaced by a sentence: another network's are not this one's."""
    before, heading, rest = card.partition(f"\n{MEASURED}\n")
    if not heading:
        return card
    lines = rest.split("\n")
    tables = [number for number, line in enumerate(lines[: _next_heading(lines)]) if line.startswith("|")]
    kept = lines[tables[-1] + 1 :] if tables else lines[_next_heading(lines) :]
    return "\n".join([f"{before}\n{MEASURED}\n\nThe merged student was not measured.", "", *kept])


def _next_heading(lines: Sequence[str]) -> int:
    return next((number for number, line in enumerate(lines) if line.startswith("## ")), len(lines))


def _licence(licence: Licence) -> str:
    said = f"- {markdown(licence.name)}: {markdown(licence.licence)} ({visible(licence.source)})"
    if licence.commercial is None:
        return f"{said}. **Whether it allows commercial use is not known**: check its source."
    return said if licence.commercial else f"{said}. **Forbids commercial use.**"
