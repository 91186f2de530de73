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
        text += " An accuracy over fewer rows, since others lack a modality, has the number of its rows beside it."
    return f"{text} Picked for {findings.pick}." if findings.pick is not None else text


def pairwise_sentences(findings: Findings) -> list[str]:
    """For each student and label fraction, the methods that are better, worse or not distinguishable."""
    sentences = []
    pairs = findings.pairwise.pairs
    for student, labelled in dict.fromkeys((p.setting.student, p.setting.labelled) for p in pairs):
        for method, name in ((ALONE, "the student alone"), (KD, "KD")):
            compared = [
                pair
                for pair in pairs
                if (pair.setting.student, pair.setting.labelled, pair.against.method) == (student, labelled, method)
            ]
            if compared:
                sentences.append(f"{compared[0].setting.place}, against {name}: {_split(compared)}.")
    return sentences


def _split(pairs: Sequence[PairedDifference]) -> str:
    parts = []
    for verdict in ("better", "worse", "not distinguishable"):
        alike = [pair for pair in pairs if pair.verdict == verdict]
        alike.sort(key=lambda pair: abs(pair.difference.value), reverse=True)
        if alike:
            names = ", ".join(f"{p.setting.title} ({signed(p)})" for p in alike[:SHOWN])
            more = f" and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
            parts.append(f"{verdict}: {names}{more}")
    return "; ".join(parts)


def signed(pair: PairedDifference) -> str:
    """A difference in accuracy, with its sign."""
    return f"{pair.difference.value:+.3f}"


def interval(pair: PairedDifference) -> str:
    """A difference with its confidence interval."""
    return f"{pair.difference.value:+.3f} [{pair.difference.low:+.3f}, {pair.difference.high:+.3f}]"


def control_sentences(findings: Findings) -> list[str]:
    """For each control, whether teachers that predict other rows help too, that is, the pairs are not the reason."""
    sentences = []
    for pair in findings.pairwise.controls:
        bound = f"upper {LEVEL:.0%} bound {pair.difference.high:+.3f} against the student alone"
        conclusion = (
            "which it exceeds: a gain that does not depend on matching pairs is not ruled out"
            if exceeds(pair)
            else "which it does not exceed"
        )
        sentences.append(f"Control {pair.setting.title}, {pair.setting.place}: {signed(pair)}, {bound}, {conclusion}.")
    return sentences


def tuning_sentences(findings: Findings) -> list[str]:
    """The tuned values of each setting, and the number of trials."""
    sentences = []
    for choice in findings.tuning:
        setting = Setting(choice["method"], choice["student"], choice["teachers"], choice["labelled"], None)
        where = f"{setting.title}, {setting.place}"
        lacks = f"; it has no {' and no '.join(choice['missing'])}, skipped" if choice["missing"] else ""
        tried = sum(len(trial["seeds"]) for trial in choice["trials"])
        if not choice["chosen"]:
            sentences.append(f"{where}: nothing to tune{lacks}.")
            continue
        values = ", ".join(f"{field} = {value}" for field, value in choice["chosen"].items())
        how = f"in {counted(tried, 'trial')}" if tried else "the only choice"
        sentences.append(f"{where}: {values} ({how}){lacks}.")
    return sentences
