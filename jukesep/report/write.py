"""The report of an experiment: metrics and plot data for DVC, pictures, and docs/results.md.

    metrics/sdr/             the paper's SDR, what `dvc metrics show` prints: a file a system
      {init}_early.json      {"step": ..., "drums": ..., "bass": ..., ..., "total": ...}, in dB
      {init}_late.json       of the first and of the last checkpoint of stage 2
    metrics/baselines/       no training at all, the oracle and the codec ceilings
    metrics/held_out/        the same systems on songs of instruments never heard in training
    metrics/{sdr_mdx,sdr_v4}/  the same systems by the other two kinds of SDR. No folder mixes two
                             kinds, since DVC prints a folder as one table
    plots/*.csv              data of the plots declared in dvc.yaml, drawn by .dvc/plots/*.json
    plots/*.png              the pictures of the README
    docs/results.md          the tables, beside the paper's

No torch here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import paths
from ..base.files import write_text
from ..scoring.metrics import METRICS
from . import figures, page
from .results import CODEBOOK_NAMES, LOSS_NAMES, Results, Table, read_results

if TYPE_CHECKING:
    import pandas as pd

DECIMALS = 4  # of a dB: far below what a seed changes


def write_report(params: dict[str, Any], root: Path) -> None:
    """Write the report of the experiment that `params` describes, below the project folder.

    `params` is params.yaml as a dictionary. Raises UserError, naming the file, where the
    results are incomplete or contradict each other; nothing is written then.
    """
    results = read_results(params, root)
    _write_metrics(results, root)
    for name, table in plot_tables(results).items():
        text = table.to_csv(index=False, lineterminator="\n")
        write_text(root / paths.PLOTS / f"{name}.csv", text)
    figures.write_figures(results, root / paths.PLOTS)
    write_text(root / paths.PAGE, page.results_page(results))


def metric_files(results: Results) -> dict[str, dict[str, float | None]]:
    """Path below metrics/ -> the content of a file."""
    files: dict[str, dict[str, float | None]] = {}

    def add(folder: str, baselines: str, table: Table) -> None:
        for key, row in table.items():
            # JSON knows neither NaN nor infinity, which BSSEval v4 can give.
            content = {
                stem: round(value, DECIMALS) if np.isfinite(value) else None
                for stem, value in row.items()
            }
            if key in results.separations:
                init, step = results.separations[key]
                path = f"{folder}/{init}_{results.checkpoint_names[step]}.json"
                files[path] = {"step": step, **content}
            else:
                files[f"{baselines}/{key}.json"] = content

    add("sdr", "baselines", results.table("sdr"))
    for metric in ("sdr_mdx", "sdr_v4"):
        add(metric, f"{metric}/baselines", results.table(metric))
    for group in results.groups:
        if group != results.headline:
            add(group, f"{group}/baselines", results.table("sdr", group))
    return files


def _write_metrics(results: Results, root: Path) -> None:
    folder = root / paths.METRICS
    # Files of an earlier choice of stems, inits or checkpoints would be shown as results of this.
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in metric_files(results).items():
        write_text(folder / path, json.dumps(content, indent=2) + "\n")


def plot_tables(results: Results) -> dict[str, pd.DataFrame]:
    """Name -> the data of a plot, as plots/<name>.csv holds it."""
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
    """Every song under every system, a column a metric (a ceiling has `sdr` alone)."""
    rows = results.scores
    index = ["song", "group", "stem", "system", "init", "step", "key"]
    rows = rows[rows["metric"].isin(METRICS)]
    # A pivot drops rows whose step is missing: key stands in for system, init and step.
    wide = rows.pivot(index=["song", "stem", "key"], columns="metric", values="value")
    named = rows[index].drop_duplicates().merge(wide.round(DECIMALS), on=["song", "stem", "key"])
    return named[[*index[:-1], *METRICS]]


def _checkpoints(results: Results) -> pd.DataFrame:
    """The paper's Figure 2: SDR at each checkpoint; baselines repeat at every step, as lines."""
    table = results.table("sdr")
    lines = [(init, step, f"{init}_{step}") for init in results.inits for step in results.steps]
    lines += [
        (key, step, key) for key in ("scaled_mixture", "ideal_ratio_mask") for step in results.steps
    ]
    return _rows(
        ["stem", "series", "step", "sdr"],
        [
            (stem, series, step, table[key][stem])
            for stem in results.columns
            for series, step, key in lines
        ],
    )


def _transfer(results: Results) -> pd.DataFrame:
    """Scratch against pretrained at each checkpoint; empty where an init was not run."""
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
    """What stage 1 reconstructs from the stem itself, and how much of it separation reaches."""
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
