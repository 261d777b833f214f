"""Terminal tables: the headline of the report, for a terminal.

Cells are ``rich.text.Text``: names from a file are never read as markup, and hold no control character.
"""

from rich.table import Table
from rich.text import Text

from prunus.report.facts import RunFacts
from prunus.report.wording import NOT_MEASURED, summary_rows

__all__ = ["summary_table"]


def summary_table(facts: RunFacts) -> Table:
    """Metrics (the main one first), sparsities, size and time, dense beside sparse; baselines below, dim.

    A baseline belongs to the task, so its value stands in both columns.
    """
    name = facts.model.name or facts.model.architecture
    title = " · ".join(filter(None, (facts.task.name, name))) or "prunus"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("sparse", justify="right")
    for i, line in enumerate(summary_rows(facts)):
        main = i == 0 and line.kind == "metric"
        style = "bold" if main else ("dim" if line.kind == "baseline" else "")
        cells = ((line.dense, line.dense_note), (line.sparse, line.sparse_note))
        table.add_row(Text(line.label, style), *(_value(value, note, style) for value, note in cells))
    return table


def _value(shown: str, note: str, style: str) -> Text:
    full = f"{shown} ({note})" if note else shown
    return Text(full, "dim" if shown == NOT_MEASURED else style)
