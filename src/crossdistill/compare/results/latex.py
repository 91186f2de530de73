"""The table of a comparison as LaTeX that needs no package."""

from crossdistill.compare.grid import percent
from crossdistill.compare.results.table import Entry, Findings, ResultTable, table_rows
from crossdistill.runtime import escaping
from crossdistill.runtime.progress import counted


def latex(findings: Findings) -> str:
    """The table as plain LaTeX without packages; the best entry bold, the second underlined."""
    table = ResultTable.of(findings)
    columns = [escaping.latex(f"{student}, {percent(labelled)}") for student, labelled in table.columns]
    lines = [
        f"% {escaping.latex(findings.grid.data)}: accuracy, mean and standard deviation over "
        f"{counted(findings.grid.seeds, 'seed')}, {counted(table_rows(findings), 'test row')} where none are named",
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\hline",
        " & ".join(["method", "teachers", *columns]) + r" \\",
        r"\hline",
    ]
    kind = table.lines[0].kind if table.lines else "method"
    for line in table.lines:
        if line.kind != kind:
            lines.append(r"\hline")
            kind = line.kind
        cells = [_tex_entry(line.entries.get(column)) for column in table.columns]
        lines.append(" & ".join([escaping.latex(line.method), escaping.latex(line.teachers or "--"), *cells]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _tex_entry(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry.row is None:
        return rf"\textit{{{escaping.latex(entry.state)}}}"
    mean, std = f"{entry.row.mean:.3f}", "" if entry.row.std is None else rf" $\pm$ {entry.row.std:.3f}"
    mean = {"best": rf"\textbf{{{mean}}}", "second": rf"\underline{{{mean}}}", "": mean}[entry.mark]
    rows = "" if entry.fewer is None else f" ({counted(entry.fewer, 'row')})"
    return mean + std + rows + (r"$^\dagger$" if entry.state == "partly failed" else "")
