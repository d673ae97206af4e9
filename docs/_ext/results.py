"""Committed tables on pages: experiments, with date, command and what they say in a few computed
lines; statements."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dfdc_lib.metrics import auc, log_loss

Lines = list[str]


def margins(table: pd.DataFrame) -> Lines:
    shown = table[table.arm == "input"].pivot(index="family", columns="margin", values="auc")
    rows = [
        f"| {family} | " + " | ".join(f"{v:.2f}" for v in row) + " |"
        for family, row in shown.iterrows()
    ]
    best = ", ".join(f"{family} at {row.idxmax():.0%}" for family, row in shown.iterrows())
    head = (
        "| AUC, the network's input as large at every margin | "
        + " | ".join(f"{m:.0%}" for m in shown)
        + " |"
    )
    rule = "|---" * (len(shown.columns) + 1) + "|"
    return [head, rule, *rows, "", f"Highest: {best}. 0.5 is guessing."]


def limits(table: pd.DataFrame) -> Lines:
    head = "| {} | AUC (95 %) | against the last line |\n|---|---|---|"
    names, lines = {"width": "width of a face, pixels", "frames": "frames of a video"}, []
    for kind, rows in table.groupby("kind", sort=False):
        lines += ["", *head.format(names[kind]).split("\n")]
        for row in rows.itertuples():
            against = "" if pd.isna(row.against_value) else f"{row.against_value:+.3f}"
            lines.append(
                f"| {row.value} | {row.auc:.2f} ({row.low:.2f} to {row.high:.2f}) | {against} |"
            )
    return lines


def leave_one_out(table: pd.DataFrame) -> Lines:
    joint = table[table.seed == "all"]
    return auc_table("AUC (95 %)", joint, "arm", "method")


def transfer(table: pd.DataFrame) -> Lines:
    mean = table[table.method == "all"]
    return auc_table("AUC of methods left out, their mean (95 %)", mean, "recipe", "place")


def auc_table(title: str, table: pd.DataFrame, row: str, column: str) -> Lines:
    """AUC with its interval, a line for each value of one column, a cell for each of the other."""
    names, rows = list(table[column].unique()), []
    for name, part in table.groupby(row, sort=False):
        cells = [f"{r.auc:.2f} ({r.auc_low:.2f} to {r.auc_high:.2f})" for r in part.itertuples()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return [f"| {title} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|", *rows]


def other_data_sets(table: pd.DataFrame) -> Lines:
    """The mean AUC of the networks, a line for each training set."""
    names = list(table.tested_on.unique())
    rows = []
    for trained, own in table.groupby("trained_on"):
        each = own.groupby(["tested_on", "seed"]).apply(lambda t: auc(t.label, t.p_fake))
        mean = each.groupby("tested_on").mean()
        rows.append(f"| {trained} | " + " | ".join(f"{mean[name]:.2f}" for name in names) + " |")
    head = "| trained on, tested on | " + " | ".join(names) + " |"
    return [head, "|---" * (len(names) + 1) + "|", *rows]


def sample_audit(table: pd.DataFrame) -> Lines:
    unfair = table[~table.check.str.contains("whole crop|…")]
    crop = table[table.check.str.contains("whole crop")].iloc[0]
    methods = table[table.check.str.contains("…")]
    each = ", ".join(f"{row.check.split()[2]} {row.auc:.2f}" for row in methods.itertuples())
    away = unfair.loc[(unfair.auc - 0.5).abs().idxmax()]
    return [
        f"Fair: of {len(unfair)} things that must not tell a fake, "
        f"the one furthest from guessing is *{away.check}*, "
        f"with an AUC of {away.auc:.2f} ({away.auc_low:.2f} to {away.auc_high:.2f}). "
        f"Learnable: from whole crops AUC {crop.auc:.2f} "
        f"({crop.auc_low:.2f} to {crop.auc_high:.2f}); by method {each}."
    ]


def encoders(table: pd.DataFrame) -> Lines:
    rows = [
        "| arm | log loss (95 %) | AUC | log loss minus that of … (95 %) |",
        "|---|---|---|---|",
    ]
    for row in table[table.seed == "all"].itertuples():
        gain = f"{row.log_loss_gain_value:+.3f} ({row.log_loss_gain_low:+.3f} to "
        gain += f"{row.log_loss_gain_high:+.3f}), {row.against}"
        loss = f"{row.log_loss:.3f} ({row.log_loss_low:.3f} to {row.log_loss_high:.3f})"
        against = gain if isinstance(row.against, str) else "—"
        rows.append(f"| {row.arm} | {loss} | {row.auc:.3f} | {against} |")
    return rows


def ensembles(table: pd.DataFrame) -> Lines:
    words = {
        "seed": "Lite0",
        "longer": "Lite0, four times the steps",
        "snapshot": "epochs of one of these",
        "larger": "Lite2",
        "larger, longer": "Lite2, twice the steps",
    }
    rows = [
        "| networks | number | log loss of one: mean (lowest to highest) | of their average |",
        "|---|---|---|---|",
    ]
    for arm, part in table.groupby("arm", sort=False):
        alone = [log_loss(m.label, m.p_confident) for _, m in part.groupby("number")]
        mean = part.groupby("video_id")[["label", "p_confident"]].mean()
        spread = f"{sum(alone) / len(alone):.3f} ({min(alone):.3f} to {max(alone):.3f})"
        joint = f"{log_loss(mean.label, mean.p_confident):.3f}"
        rows.append(f"| {words[arm]} | {len(alone)} | {spread} | {joint} |")
    return rows


def procedures(table: pd.DataFrame) -> Lines:
    rows = [
        "| done otherwise than upstream | mean change of a video's p_fake | largest |",
        "|---|---|---|",
    ]
    for difference, part in table[table.difference != "none"].groupby("difference", sort=False):
        rows.append(
            f"| {difference} | {part.change.abs().mean():.4f} | {part.change.abs().max():.4f} |"
        )
    return [f"{table.video_id.nunique()} videos.", "", *rows]


READERS: dict[str, Callable[[pd.DataFrame], Lines]] = {
    f.__name__: f
    for f in (
        margins,
        limits,
        leave_one_out,
        transfer,
        other_data_sets,
        sample_audit,
        encoders,
        ensembles,
        procedures,
    )
}


class Experiment(SphinxDirective):
    """`{experiment} name`: the command, then date and versions of the committed table, then what it
    says; of a script that writes no table, the block's own words."""

    required_arguments = 1
    has_content = True

    def run(self) -> list:
        name = self.arguments[0]
        folder = Path(self.env.srcdir) / "experiments"
        self.env.note_dependency(str(folder / f"{name}.py"))
        text = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text()))
        command = re.findall(r"^ {4}(.*)$", text, re.MULTILINE)
        lines = ["```", *command, "```", ""]
        table = folder / f"{name}.csv"
        if table.exists():
            self.env.note_dependency(str(table))
            lines += self.read(table)
        else:
            lines += list(self.content) or ["There is no table yet: needs full."]
        self.content = StringList(lines, self.env.docname)
        return self.parse_content_to_nodes()

    def read(self, path: Path) -> Lines:
        with open(path) as file:
            first = file.readline()
        head = first[2:].strip() if first.startswith("# ") else ""
        table = pd.read_csv(path, skiprows=1 if head else 0)
        if not head:
            stamps = table[
                [c for c in ("machine", "date", "versions") if c in table]
            ].drop_duplicates()
            head = "; ".join(", ".join(map(str, row)) for row in stamps.itertuples(index=False))
        return [f"*Made on: {head}.*", "", *READERS[path.stem](table)]


class Card(SphinxDirective):
    """`{card} part`: what `python -m benchmarks gpu` measured, or that nobody has yet.

    `{card} figure` shows the figure, if there is one, with the block's words for who can't see it.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list:
        folder, name = Path(self.env.srcdir) / "gpu", self.arguments[0]
        table = folder / f"{name}.csv"
        if name == "figure":
            words = " ".join(self.content)
            found = (folder / "gpu.png").exists()
            lines = ["```{image} gpu/gpu.png", f":alt: {words}", "```"] if found else []
        else:
            lines = self.read(table) if table.exists() else ["*Nobody has measured it yet.*"]
        self.content = StringList(lines, self.env.docname)
        return self.parse_content_to_nodes()

    def read(self, path: Path) -> Lines:
        self.env.note_dependency(str(path))
        table = pd.read_csv(path)
        about = table.iloc[0][["machine", "date", "versions"]]
        shown = table.drop(columns=about.index)
        rows = shown.map(lambda v: f"{v:.3g}" if isinstance(v, float) else v).replace("nan", "—")
        cells = [f"| {' | '.join(map(str, row))} |" for row in rows.itertuples(index=False)]
        rule = "|---" * len(shown.columns) + "|"
        return [f"*{', '.join(about)}.*", "", f"| {' | '.join(shown)} |", rule, *cells]


class Statements(SphinxDirective):
    """`{statements} kind`: what the slides state and upstream does, from statements.csv; topics
    link to ours."""

    required_arguments = 1

    def run(self) -> list:
        path = Path(self.env.srcdir) / "experiments" / "statements.csv"
        self.env.note_dependency(str(path))
        table = pd.read_csv(path)
        rows = [
            f"| [{row.topic}](api/{row.here.rpartition('.')[0]}.md) "
            f"| {row.statement} | {row.upstream} |"
            if "/" not in row.here
            else f"| {row.topic} | {row.statement} | {row.upstream} |"
            for row in table[table.kind == self.arguments[0]].itertuples()
        ]
        self.content = StringList(
            ["| topic | the slides | upstream's code |", "|---|---|---|", *rows], self.env.docname
        )
        return self.parse_content_to_nodes()


def setup(app: Sphinx) -> dict:
    app.add_directive("experiment", Experiment)
    app.add_directive("card", Card)
    app.add_directive("statements", Statements)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
