"""Conclusions of a comparison in sentences, for terminal and report."""

from collections.abc import Sequence

from crossdistill.compare.grid import Setting
from crossdistill.compare.results.pairwise import ALONE, KD, PairedDifference, exceeds
from crossdistill.compare.results.statistics import LEVEL
from crossdistill.compare.results.table import Findings, table_rows
from crossdistill.runtime.progress import counted

SHOWN = 6
"""Largest number of methods named in one sentence."""


def notes(findings: Findings) -> str:
    """The numbers of test rows and seeds of the table, and the picked budget."""
    text = f"{counted(table_rows(findings), 'test row')}, {counted(findings.grid.seeds, 'seed')}."
    if any(row.test_rows != table_rows(findings) for row in findings.collected.rows):
        text += " Where an accuracy is over fewer rows, since a modality is absent in the others, they stand beside it."
    return f"{text} Picked for {findings.pick}." if findings.pick is not None else text


def verdict_sentences(findings: Findings) -> list[str]:
    """For each student and label fraction, the methods that are better, worse or not distinguishable."""
    found = []
    pairs = findings.verdicts.pairs
    for student, labelled in dict.fromkeys((p.setting.student, p.setting.labelled) for p in pairs):
        for method, name in ((ALONE, "the student alone"), (KD, "KD")):
            own = [
                pair
                for pair in pairs
                if (pair.setting.student, pair.setting.labelled, pair.against.method) == (student, labelled, method)
            ]
            if own:
                found.append(f"{own[0].setting.place}, against {name}: {_split(own)}.")
    return found


def _split(pairs: Sequence[PairedDifference]) -> str:
    parts = []
    for verdict in ("better", "worse", "not distinguishable"):
        own = [pair for pair in pairs if pair.verdict == verdict]
        own.sort(key=lambda pair: abs(pair.found.value), reverse=True)
        if own:
            names = ", ".join(f"{p.setting.title} ({signed(p)})" for p in own[:SHOWN])
            more = f" and {len(own) - SHOWN} more" if len(own) > SHOWN else ""
            parts.append(f"{verdict}: {names}{more}")
    return "; ".join(parts)


def signed(pair: PairedDifference) -> str:
    """A difference in accuracy, with its sign."""
    return f"{pair.found.value:+.3f}"


def interval(pair: PairedDifference) -> str:
    """A difference with its confidence interval."""
    return f"{pair.found.value:+.3f} [{pair.found.low:+.3f}, {pair.found.high:+.3f}]"


def control_sentences(findings: Findings) -> list[str]:
    """For each control, whether teachers that predict other rows help too, that is, the pairs are not the reason."""
    found = []
    for pair in findings.verdicts.controls:
        bound = f"upper {LEVEL:.0%} bound {pair.found.high:+.3f} against the student alone"
        said = (
            "which it exceeds: a gain that is not knowledge of the pair is not ruled out"
            if exceeds(pair)
            else "which it does not exceed"
        )
        found.append(f"Control {pair.setting.title}, {pair.setting.place}: {signed(pair)}, {bound}, {said}.")
    return found


def tuning_sentences(findings: Findings) -> list[str]:
    """The tuned values of each setting, and the number of trials."""
    found = []
    for one in findings.tuning:
        setting = Setting(one["method"], one["student"], one["teachers"], one["labelled"], None)
        where = f"{setting.title}, {setting.place}"
        lacks = f"; it has no {' and no '.join(one['missing'])}, skipped" if one["missing"] else ""
        tried = sum(len(trial["seeds"]) for trial in one["trials"])
        if not one["chosen"]:
            found.append(f"{where}: nothing to tune{lacks}.")
            continue
        values = ", ".join(f"{field} = {value}" for field, value in one["chosen"].items())
        how = f"in {counted(tried, 'trial')}" if tried else "the only choice"
        found.append(f"{where}: {values} ({how}){lacks}.")
    return found
