"""Read and check the results of an experiment: the scores of every song, the curves of every run.

Reads only the files that the parameters name, whatever else a folder holds. Refuses files that do
not fit together: a mean over songs is a result only if every system was scored on the same songs.
This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import paths
from ..base.errors import UserError
from ..scoring.evaluation import BASELINES, COLUMNS
from ..scoring.metrics import METRICS
from ..scoring.published import TOTAL
from ..songs.manifest import GROUPS, STEMS
from ..systems import equaliser
from .others import LABELS, REFINED, Other, others, refined_init

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"  # both
# The baselines and the oracle, in the order of the tables.
UNTRAINED = (equaliser.NAME, *BASELINES)

LOSS_NAMES = ("loss", "valid_loss", "l2", "linf", "multispectral", "commit")
CODEBOOK_NAMES = ("perplexity", "usage", "revived")
CURVE_COLUMNS = ["stage", "stem", "init", "step", "name", "value"]
# A curve has at most about this many points in the plots; each run's log.csv has all.
CURVE_POINTS = 300
DECIMALS = 4  # of values in dB; other seeds change far more

Cell = tuple[str, str, str, int | None, str]  # stem, system, init, step, metric
Table = dict[str, dict[str, float]]  # key of a system -> stem or total -> dB


@dataclass(frozen=True)
class Results:
    """The scores and curves of one experiment, with the parameters that select them.

    scores: one row per score, with the columns of results/scores/*.csv, `key`, the system's name in
    tables: "pretrained_600", "open_unmix", "mixture", "ceiling_scratch", and `undefined`, whether
    the stem is silent in the song: then the song counts in no metric of the stem.
    curves: in long form, with the columns CURVE_COLUMNS.
    others: the systems beside ours.
    """

    scale: str
    source: str
    split: str
    stems: tuple[str, ...]
    inits: tuple[str, ...]
    steps: tuple[int, ...]
    scores: pd.DataFrame
    curves: pd.DataFrame
    others: tuple[Other, ...] = ()
    notes: tuple[str, ...] = ()  # warnings about this run's data, for the reader

    @property
    def separations(self) -> dict[str, tuple[str, int]]:
        """Keys of the trained systems, pretrained_150, pretrained_600, ...: their init and step."""
        return {f"{init}_{step}": (init, step) for init in self.inits for step in self.steps}

    @property
    def checkpoint_names(self) -> dict[int, str]:
        """The names of the steps: early and late, the first and the last, and middle between them.

        One checkpoint is late; several between two are middle_1, middle_2, ...
        """
        between = len(self.steps) - 2
        middle = ["middle"] if between == 1 else [f"middle_{n + 1}" for n in range(between)]
        names = ["early", *middle, "late"][-len(self.steps) :]
        return dict(zip(self.steps, names, strict=True))

    @property
    def ceilings(self) -> list[str]:
        """Keys of the codec ceilings D(Q(E1(stem))), one per init."""
        return [f"ceiling_{init}" for init in self.inits]

    @property
    def trained(self) -> dict[str, int]:
        """Keys of all trained systems, ours and others: the last step of their training."""
        ours = {key: step for key, (_, step) in self.separations.items()}
        return ours | {other.name: other.step for other in self.others}

    @property
    def keys(self) -> list[str]:
        """Keys of all systems in the order of the tables."""
        return [*self.trained, *UNTRAINED, *self.ceilings]

    @property
    def groups(self) -> list[str]:
        """The song groups in order; empty if the songs have none."""
        found = set(self.scores["group"])
        return [group for group in GROUPS if group in found]

    @property
    def headline(self) -> str | None:
        """The group of the main tables: songs of instruments heard in training. None: all songs.

        A mean over both groups would depend on how many songs each group has.
        """
        return self.groups[0] if self.groups else None

    @property
    def columns(self) -> list[str]:
        """Columns of a table: the stems, and the total if the run has all four."""
        return [*self.stems, *([TOTAL] if set(self.stems) == set(STEMS) else [])]

    def label(self, key: str) -> str:
        """What a system is called in plots: "pretrained, step 600", "Open-Unmix"."""
        if key in self.separations:
            init, step = self.separations[key]
            return f"{init}, step {step}"
        if key in self.ceilings:
            return f"ceiling of {key.removeprefix('ceiling_')}"
        return f"{refined_init(self.inits)}, refined" if key == REFINED else LABELS.get(key, key)

    def file_name(self, key: str) -> str:
        """The name of a system's files in metrics/: by checkpoint for our models."""
        if key not in self.separations:
            return key
        init, step = self.separations[key]
        return f"{init}_{self.checkpoint_names[step]}"

    def songs(self, group: str | None = None) -> int:
        """The number of songs scored in a group, by default the headline's."""
        return int(self.rows(group)["song"].nunique())

    def rows(self, group: str | None = None) -> pd.DataFrame:
        """The scores of one group, by default of the headline's."""
        group = group or self.headline
        if group in (None, ALL):
            return self.scores
        return self.scores[self.scores["group"] == group]

    def left_out(self, metric: str) -> dict[str, list[str]]:
        """The headline's songs that have no value of a metric in any system, by stem."""
        rows = self.rows()
        rows = rows[rows["metric"] == metric]
        there = rows[rows["value"].notna()]
        counted = set(zip(there["stem"], there["song"], strict=True))
        songs = sorted(set(rows["song"]))
        return {s: [song for song in songs if (s, song) not in counted] for s in self.stems}

    def table(self, metric: str, group: str | None = None) -> Table:
        """One metric of every system in dB: table[key][column], with the columns :attr:`columns`.

        Rounded to four decimals, so that files and pages round the same values further.

        `sdr` and `sdr_mdx` are means, `sdr_v4` and museval's SIR, SAR and ISR medians, over the
        songs that have a value. Total is the mean of the four stems. Covers the
        songs of `group`, by default the headline's; ALL takes every song.
        """
        rows = self.rows(group)
        rows = rows[rows["metric"] == metric]
        grouped = rows.groupby(["key", "stem"])["value"]
        # Both skip NaN.
        values = grouped.median() if metric.endswith("_v4") else grouped.mean()
        table: Table = {}
        for key in self.keys:
            if (key, self.stems[0]) in values.index:
                row = {stem: float(values[key, stem]) for stem in self.stems}
                if TOTAL in self.columns:
                    row[TOTAL] = float(np.mean(list(row.values())))
                table[key] = {column: round(value, DECIMALS) for column, value in row.items()}
        return table


def read_results(params: dict[str, Any], root: Path) -> Results:
    """Read the results that `params` (params.yaml as a dictionary) names below the folder `root`.

    Raises UserError, naming the file, for missing, duplicate or contradictory scores.
    """
    import pandas as pd

    stems = tuple(stem for stem in STEMS if stem in params["stems"])
    inits = tuple(params["inits"])
    steps = tuple(int(step) for step in params["stage2"]["checkpoints"])
    beside = tuple(others(params))

    path = root / paths.BASELINES
    baselines = _read_scores(path)
    baselines = baselines[baselines["stem"].isin(stems)]
    songs = dict(zip(baselines["song"], baselines["group"], strict=True))
    none = baselines[(baselines["metric"] == "sdr") & baselines["value"].isna()]
    undefined = set(zip(none["song"], none["stem"], strict=True))
    wanted: list[Cell] = [
        (stem, system, "", None, metric)
        for stem in stems
        for system in UNTRAINED
        for metric in METRICS
    ]
    _check(path, baselines, songs, wanted, undefined)

    tables = [baselines]
    for stem in stems:
        for init in inits:
            path = root / paths.scores(stem, init)
            table = _read_scores(path)
            wanted = [(stem, "separation", init, step, m) for step in steps for m in METRICS]
            wanted.append((stem, "ceiling", init, None, "sdr"))
            _check(path, table, songs, wanted, undefined)
            tables.append(table)
    for peer in dict.fromkeys(other.peer for other in beside):
        path = root / paths.system_scores(peer)
        table = _read_scores(path)
        table = table[table["stem"].isin(stems)]
        wanted = [
            (stem, other.name, "", other.step, metric)
            for stem in stems
            for other in beside
            if other.peer == peer
            for metric in METRICS
        ]
        _check(path, table, songs, wanted, undefined)
        tables.append(table)
    scores = pd.concat(tables, ignore_index=True)
    scores["key"] = [
        f"{init}_{step}" if system == "separation" else f"{system}_{init}" if init else system
        for system, init, step in zip(scores["system"], scores["init"], scores["step"], strict=True)
    ]
    pairs = zip(scores["song"], scores["stem"], strict=True)
    scores["undefined"] = [pair in undefined for pair in pairs]
    return Results(
        scale=params["scale"],
        source=params["data"]["source"],
        split=params["evaluate"]["split"],
        stems=stems,
        inits=inits,
        steps=steps,
        scores=scores,
        curves=_read_curves(params, stems, inits, root),
        others=beside,
        notes=tuple(_notes(params)),
    )


def _notes(params: dict[str, Any]) -> Iterator[str]:
    data = params["data"]
    if data.get("train_on_validation"):
        yield (
            "`data.train_on_validation` was on, so training included the validation songs. The "
            "validation losses are not held-out losses; do not choose anything by them."
        )
    pretrained = "pretrained" in params["inits"] and params["weights"]["source"] == "pretrain"
    if data["source"] != "band" and pretrained:
        yield (
            "Pretraining used the mixtures of the training songs, not a corpus of its own: it adds "
            "steps, but no other music."
        )


def _read_scores(path: Path) -> pd.DataFrame:
    """A scores file with checked columns. `step` is Int64, and missing where the file is empty."""
    import pandas as pd

    table = _read_csv(path)
    if list(table.columns) != list(COLUMNS):
        raise UserError(f"{path}: the columns are {list(table.columns)}, not {list(COLUMNS)}")
    try:
        steps = [int(step) if step else None for step in table["step"]]
        values = [float(value) for value in table["value"]]  # "nan" is allowed
    except ValueError as error:
        raise UserError(f"{path}: step and value must be numbers ({error})") from None
    return table.assign(step=pd.array(steps, dtype="Int64"), value=values)


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV file as strings (a song may be called "NA")."""
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro` to write it") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file ({error}); run its stage again") from None


def _check(
    path: Path,
    table: pd.DataFrame,
    songs: dict[str, str],
    wanted: list[Cell],
    undefined: Set[tuple[str, str]],
) -> None:
    """Check that every wanted cell has each song once, with a number, and that none is unwanted.

    `undefined` holds each song and stem without scores: a cell has a number for all others.
    """
    import pandas as pd

    again = "; run its stage again"
    cells = [
        (stem, system, init, None if pd.isna(step) else int(step), metric)
        for stem, system, init, step, metric in zip(
            *(table[name] for name in COLUMNS[2:7]), strict=True
        )
    ]
    if surplus := {cell[:4] for cell in cells} - {cell[:4] for cell in wanted}:
        raise UserError(f"{path}: unexpected scores: {_words(sorted(surplus, key=str)[0])}{again}")

    keys = list(zip(cells, table["song"], strict=True))
    if len(set(keys)) < len(keys):
        cell, song = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path}: song {song!r} has {_words(cell)} twice{again}")
    for song, group in zip(table["song"], table["group"], strict=True):
        if song not in songs:
            raise UserError(f"{path}: song {song!r} is not in {paths.BASELINES}{again}")
        if songs[song] != group:
            raise UserError(
                f"{path}: song {song!r} is in group {group!r}, "
                f"but in {songs[song]!r} in {paths.BASELINES}{again}"
            )
    found = dict(zip(keys, table["value"], strict=True))
    for cell in wanted:
        for song in songs:
            if (cell, song) not in found:
                raise UserError(f"{path}: song {song!r} has no {_words(cell)}{again}")
            value = found[cell, song]
            if (song, cell[0]) in undefined:
                wrong = not np.isnan(value)
            else:
                # BSSEval v4 can be NaN (no frame counts) or infinite (a perfect estimate).
                wrong = cell[4] in ("sdr", "sdr_mdx") and not np.isfinite(value)
            if wrong:
                raise UserError(f"{path}: {_words(cell)} of song {song!r} is {value}{again}")
    if not songs:
        raise UserError(f"{path}: no scores for the stems in params.yaml{again}")


def _words(cell: tuple[Any, ...]) -> str:
    stem, system, init, step, *metric = cell
    parts = [*metric, "of", stem, system, init, "" if step is None else f"at step {step}"]
    return " ".join(part for part in parts[0 if metric else 1 :] if part)


def _read_curves(
    params: dict[str, Any], stems: tuple[str, ...], inits: tuple[str, ...], root: Path
) -> pd.DataFrame:
    """The losses and codebook columns of every run's log.csv in long form, thinned out.

    A peer has no codebook: its `stage` and `init` are "peer", its `stem` is its name.
    """
    import pandas as pd

    runs = [
        (stage, stem, init, paths.run(stage, stem, init))
        for stage in ("stage1", "stage2")
        for stem in stems
        for init in inits
    ]
    if params["weights"]["source"] == "pretrain" and "pretrained" in inits:
        runs.append(("pretrain", "mixture", "pretrained", paths.weights("pretrained")))
    peers = [peer for peer, recipe in params["peers"].items() if recipe]
    runs += [("peer", peer, "peer", paths.peer(peer)) for peer in peers]
    curves = []
    for stage, stem, init, folder in runs:
        names = ("loss", "valid_loss") if stage == "peer" else (*LOSS_NAMES, *CODEBOOK_NAMES)
        for name, points in _curves_of(root / folder / "log.csv", names):
            kept = np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).astype(int))
            points = points.iloc[kept if len(points) else []]
            points = points.assign(stage=stage, stem=stem, init=init, name=name)
            curves.append(points[CURVE_COLUMNS])
    return pd.concat(curves, ignore_index=True)


def _curves_of(path: Path, names: Iterable[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, steps and values) for every one of the curves that is in a log.csv."""
    import pandas as pd

    log = _read_csv(path)
    always = {"step", "loss", "perplexity", "usage", "valid_loss"}
    missing = (always & {"step", *names}) - set(log.columns)
    if missing or log.empty:
        what = f"lacks {sorted(missing)}" if missing else "is empty"
        raise UserError(f"{path}: the log {what}; run its stage again")
    for name in names:
        if name in log.columns:
            written = log[log[name] != ""]
            try:
                points = pd.DataFrame(
                    {"step": written["step"].astype(int), "value": written[name].astype(float)}
                )
            except ValueError as error:
                raise UserError(f"{path}: column {name!r} holds no numbers ({error})") from None
            yield name, points
