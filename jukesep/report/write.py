"""The report of an experiment: metrics and plot data for DVC, pictures, and docs/results.md.

    metrics/sdr/             the paper's SDR, shown by `dvc metrics show`: one file for each system
      {init}_early.json      {"step": ..., "drums": ..., "bass": ..., ..., "total": ...}, in dB,
      {init}_late.json       for the first and the last checkpoint of stage 2
      refined.json           our refined stems
      {peer}.json            the peers
      static_equaliser.json  what a system must reach to be worth its training
    metrics/baselines/       the mixture, scaled or not, the oracle and the codec ceilings
    metrics/held_out/        the same systems on songs of instruments never heard in training
    metrics/{sdr_mdx,sdr_v4}/  the same systems, measured by the other two kinds of SDR. No folder
                             mixes two kinds, since DVC prints a folder as one table
    plots/*.csv              data of the plots in dvc.yaml, drawn by .dvc/plots/*.json
    plots/*.png              the pictures of the README
    docs/results.md          the tables, with the paper's scores

This module does not import torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import paths
from ..base.files import write_text
from ..scoring.metrics import METRICS
from ..scoring.published import TOTAL
from ..songs.manifest import STEMS
from ..systems import equaliser
from . import figures, page
from .figures import LINES, OTHERS
from .others import LABELS
from .results import CODEBOOK_NAMES, DECIMALS, LOSS_NAMES, Results, Table, read_results

if TYPE_CHECKING:
    import pandas as pd


def write_report(params: dict[str, Any], root: Path) -> None:
    """Write the report of the experiment in the project folder `root`.

    `params` is params.yaml as a dictionary. If results are incomplete or contradict each other,
    raises UserError, which names the file, and writes nothing.
    """
    results = read_results(params, root)
    _write_metrics(results, root)
    for name, table in plot_tables(results).items():
        text = table.to_csv(index=False, lineterminator="\n")
        write_text(root / paths.PLOTS / f"{name}.csv", text)
    figures.write_figures(results, root / paths.PLOTS)
    write_text(root / paths.PAGE, page.results_page(results))


def summary(root: Path) -> str:
    """What a run found, in lines for its end: the SDR of each system, and where to find more."""
    files = sorted((root / paths.METRICS / "sdr").glob("*.json"))
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    columns = [name for name in (*STEMS, TOTAL) if any(name in row for row in found.values())]
    last = columns[-1]

    def total(name: str) -> float:
        value = found[name].get(last)
        return -np.inf if value is None else float(value)

    order = sorted(found, key=total)

    def line(name: str, cells: Iterable[str]) -> str:
        return f"{name:<20}" + "".join(f"{cell:>8}" for cell in cells)

    values = [
        line(name, ("-" if (v := found[name].get(c)) is None else f"{v:.2f}" for c in columns))
        for name in order
    ]
    more = f"{paths.PAGE} has all tables, {paths.LISTEN}/index.html has the sound."
    return "\n".join([line("SDR in dB", columns), *values, more])


def metric_files(results: Results) -> dict[str, dict[str, float | None]]:
    """Return {path in metrics/: content} of all metrics files. SDR is in dB."""
    files: dict[str, dict[str, float | None]] = {}

    def add(folder: str, baselines: str, table: Table) -> None:
        for key, row in table.items():
            # BSSEval v4 can return NaN or infinity, which JSON cannot store.
            content = {stem: value if np.isfinite(value) else None for stem, value in row.items()}
            step = {"step": results.trained[key]} if key in results.trained else {}
            beside = not step and key != equaliser.NAME
            path = f"{baselines if beside else folder}/{results.file_name(key)}.json"
            files[path] = {**step, **content}

    add("sdr", "baselines", results.table("sdr"))
    for metric in ("sdr_mdx", "sdr_v4"):
        add(metric, f"{metric}/baselines", results.table(metric))
    for group in results.groups:
        if group != results.headline:
            add(group, f"{group}/baselines", results.table("sdr", group))
    return files


def _write_metrics(results: Results, root: Path) -> None:
    folder = root / paths.METRICS
    # Otherwise files of stems, inits or checkpoints that are no longer chosen would remain.
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in metric_files(results).items():
        write_text(folder / path, json.dumps(content, indent=2) + "\n")


def plot_tables(results: Results) -> dict[str, pd.DataFrame]:
    """Return {name: data} of each plot, the content of plots/<name>.csv."""
    curves = results.curves
    return {
        "scores": _scores(results),
        "checkpoints": _checkpoints(results),
        "transfer": _transfer(results),
        "ceiling": _ceiling(results),
        "losses": curves[curves["name"].isin(LOSS_NAMES)],
        "codebook": curves[curves["name"].isin(CODEBOOK_NAMES)],
    }


def _scores(results: Results) -> pd.DataFrame:
    """One row for each song and system, one column for each metric (ceilings only have `sdr`).

    The systems are in the order of the tables, and `label` names them.
    """
    rows = results.scores
    index = ["song", "group", "stem", "system", "init", "step", "label", "key"]
    rows = rows[rows["metric"].isin(METRICS) & ~rows["undefined"]]
    order = {key: place for place, key in enumerate(results.keys)}
    rows = rows.assign(label=rows["key"].map(results.label))
    rows = rows.sort_values("key", key=lambda keys: keys.map(order), kind="stable")
    # A pivot drops rows without a step, so use `key` in place of system, init and step.
    wide = rows.pivot(index=["song", "stem", "key"], columns="metric", values="value")
    named = rows[index].drop_duplicates().merge(wide.round(DECIMALS), on=["song", "stem", "key"])
    return named[[*index[:-1], *METRICS]]


def _checkpoints(results: Results) -> pd.DataFrame:
    """SDR at each checkpoint, as in the paper's Figure 2. Baselines repeat at every step.

    The other systems have their own place, the step "others", where the baselines end.
    """
    table = results.table("sdr")
    steps = list(map(str, results.steps))
    ends = [*steps, *([OTHERS] if results.others else [])]
    lines = [(init, init, step, f"{init}_{step}") for init in results.inits for step in steps]
    lines += [
        (other.name, results.label(other.name), OTHERS, other.name) for other in results.others
    ]
    lines += [(key, LABELS[key], step, key) for key in LINES for step in ends]
    return _rows(
        ["stem", "series", "label", "step", "sdr"],
        [
            (stem, series, label, step, table[key][stem])
            for stem in results.columns
            for series, label, step, key in lines
        ],
    )


def _transfer(results: Results) -> pd.DataFrame:
    """Scratch and pretrained at each checkpoint; NaN for an init that was not run."""
    table = results.table("sdr")
    rows = []
    for stem in results.columns:
        for step in results.steps:
            scratch, pretrained = (
                table[f"{init}_{step}"][stem] if init in results.inits else np.nan
                for init in ("scratch", "pretrained")
            )
            rows.append((stem, step, scratch, pretrained, pretrained - scratch))
    return _rows(["stem", "step", "scratch", "pretrained", "gain"], rows)


def _ceiling(results: Results) -> pd.DataFrame:
    """The ceiling (stage 1 on the true stem), the SDR of the separation, and their difference."""
    table = results.table("sdr")
    return _rows(
        ["stem", "init", "step", "ceiling", "sdr", "gap"],
        [
            (stem, init, step, ceiling, reached, ceiling - reached)
            for stem in results.columns
            for init in results.inits
            for step in results.steps
            for ceiling in [table[f"ceiling_{init}"][stem]]
            for reached in [table[f"{init}_{step}"][stem]]
        ],
    )


def _rows(columns: list[str], rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=columns).round(DECIMALS)
