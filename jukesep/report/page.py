"""docs/results.md: the tables of an experiment beside the published numbers.

One table holds one metric. The paper's Table 1 mixes metrics (its Wave-U-Net row is a museval
median), so each of its rows stands here with its own metric, or in a table of rows without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..scoring.published import NONE, NOT_STATED, PAPER_URL, PUBLISHED
from ..songs.manifest import GROUPS
from .others import REFINED, refined_init
from .results import ALL, Results

METRIC_TITLES = {
    "sdr": "SDR as the paper measures it (`sdr`)",
    "sdr_mdx": "SDR of the Music Demixing Challenge 2021 (`sdr_mdx`)",
    "sdr_v4": "SDR of BSSEval v4, as museval measures it (`sdr_v4`)",
    "sir_v4": "SIR of BSSEval v4 (`sir_v4`)",
    "sar_v4": "SAR of BSSEval v4 (`sar_v4`)",
    "isr_v4": "ISR of BSSEval v4 (`isr_v4`)",
}
METRIC_TEXTS = {
    "sdr": "The whole song at once, separated and scored in mono; the mean over the songs.",
    "sdr_mdx": "The same formula over both channels, each separated on its own; the mean over the "
    "songs.",
    "sdr_v4": "Frames of one second, both channels; the median over a song's frames, then the "
    "median over the songs. A frame where any stem of the song is silent does not count.",
}
GROUP_NAMES = {**GROUPS, ALL: "all test songs"}


def results_page(results: Results) -> str:
    """The page as Markdown."""
    parts = [
        "# Results",
        "<!-- Written by the report stage: `dvc repro` overwrites it. -->",
        _what(results),
        "## How to read the tables",
        *_how_to_read(results),
    ]
    extra = [m for m in METRIC_TITLES if m.endswith("_v4") and m != "sdr_v4"]
    metrics = ["sdr", "sdr_mdx", "sdr_v4"]
    metrics += [m for m in extra if m in set(results.scores["metric"])]
    for metric in metrics:
        parts += [f"## {METRIC_TITLES[metric]}", METRIC_TEXTS.get(metric, METRIC_TEXTS["sdr_v4"])]
        parts += [_metric_table(results, metric), *_uncounted(results, metric)]
        if metric == "sdr":
            parts += [*_not_stated(results), *_transfer(results)]
            parts += [*_ceiling(results), *_groups(results)]
    return "\n\n".join(parts) + "\n"


def _what(results: Results) -> str:
    stems = ", ".join(results.stems)
    steps = " and ".join(str(step) for step in results.steps)
    return (
        f"Scale `{results.scale}`, data `{results.source}`, {results.songs()} {results.split} "
        f"songs{_apart(results)}. Stems: {stems}. "
        f"Stage 1 started from {' and '.join(results.inits)} weights. "
        f"Stage 2 was evaluated at step {steps}: checkpoints fixed in advance, not chosen by score."
        f"{_peers(results)}"
    )


def _peers(results: Results) -> str:
    peers = {other.peer: other.step for other in results.others if other.name != REFINED}
    if not peers:
        return ""
    named = ", ".join(f"{results.label(peer)} ({step} steps)" for peer, step in peers.items())
    return f" Peers, trained on the same songs: {named}."


def _apart(results: Results) -> str:
    others = [group for group in results.groups if group != results.headline]
    if not others:
        return ""
    songs = sum(results.songs(group) for group in others)
    return f" of instruments heard in training, and separately {songs} of held-out instruments"


def _how_to_read(results: Results) -> list[str]:
    synthetic = (
        "**The songs of this run are synthetic**: jukesep composed and rendered them itself. Do "
        "not compare their scores with scores on MUSDB18. The published rows show the pattern to "
        "look for: in every stem, pretrained is well above scratch and above mixture / 4."
    )
    recorded = (
        f"The rows marked `{results.source}` come from this run, the others from publications. "
        "Compare rows only if they have the same metric and data."
    )
    points = [
        "All numbers are in dB; higher is better. Silence has an `sdr` of 0 dB; every 3 dB more "
        "halve the energy of the error.",
        "Each table holds one metric. The three kinds of SDR can differ by more than 1 dB on the "
        "same audio: do not compare numbers across tables.",
        synthetic if results.source == "band" else recorded,
        *results.notes,
    ]
    if results.scale != "paper":
        points.append(
            f"Scale `{results.scale}` trains a smaller model for fewer steps than the paper; "
            "docs/parameters.md lists the differences."
        )
    if any(other.name == REFINED for other in results.others):
        points.append(
            "*Refined* stems come from all four models and Wiener filters, as those of `jukesep "
            "separate` do. The paper has no refinement: compare its rows with the plain ones."
        )
    if any(other.name != REFINED for other in results.others):
        points.append(
            "The peers are other separators, trained on the same songs. docs/systems.md compares "
            "them at about the same processor time of training."
        )
    points += [
        "The *static equaliser* is one gain per frequency for each stem, fitted to the training "
        "songs in seconds. A system that is not above it gains nothing over knowing which "
        "frequencies a stem has.",
        "*mixture / 4* is the paper's baseline and needs no training. Stems below it are no better "
        "than the mixture made softer.",
        "The *ideal ratio mask* is an oracle: it shares the mixture's spectrum by the magnitudes "
        "of the true stems. It shows what masks of this kind can reach.",
        "The *ceiling* is the isolated stem after stage 1's encoder, codebook and decoder, "
        "D(Q(E1(stem))): the score of a stage 2 that matched the stem's latents perfectly.",
        "*total* is the mean of the four stems; runs with fewer stems have none.",
    ]
    return ["\n".join(f"- {point}" for point in points)]


def _metric_table(results: Results, metric: str) -> str:
    table = results.table(metric)
    rows = [
        (_name(results, key), metric, results.scale, results.source, _cells(table[key].values()))
        for key in table
    ]
    rows += _published(results, metric)
    flat = [[*row[:4], *row[4]] for row in rows]
    note = f"\n\nThe paper: [arXiv 2111.14200]({PAPER_URL})." if metric == "sdr" else ""
    return _markdown(["system", "metric", "scale", "data", *results.columns], flat) + note


def _published(results: Results, metric: str) -> list[tuple[str, str, str, str, list[str]]]:
    """The published rows of a metric. They are of test songs, so none beside validation songs."""
    if results.split != "test":
        return []
    return [
        (
            f"{row.system} ({row.source})",
            metric,
            "published",
            row.data,
            [row.values[column] for column in results.columns],
        )
        for row in PUBLISHED
        if row.metric == metric and any(row.values[column] != NONE for column in results.columns)
    ]


def _not_stated(results: Results) -> list[str]:
    rows = [[*row[:4], *row[4]] for row in _published(results, NOT_STATED)]
    if not rows:
        return []
    return [
        "### Published without a metric",
        "The paper's Table 1 also has these rows. It states neither their metric nor their songs, "
        "so they belong in no table of this page.",
        _markdown(["system", "metric", "scale", "data", *results.columns], rows),
    ]


def _uncounted(results: Results, metric: str) -> list[str]:
    """Which songs the averages of a metric leave out, and why."""
    rows = results.rows()
    rows = rows[rows["metric"] == metric]
    out = results.left_out(metric)
    points = [
        f"- **{stem}** is scored on {results.songs() - len(songs)} of {results.songs()} songs. "
        f"Without a value: {', '.join(songs)}."
        for stem, songs in out.items()
        if songs
    ]
    if points and metric.endswith("_v4"):
        why = "In each second of a song without a value, a stem of the song is silent:"
        points.insert(0, f"{why} museval leaves such songs out.\n")
    elif points:
        points.insert(0, "Songs in which a stem is silent have no SDR of this stem.\n")
    cells = zip(rows["stem"], rows["song"], rows["value"], strict=True)
    missing = sum(math.isnan(value) and song not in out[stem] for stem, song, value in cells)
    if missing:
        points.append(
            f"\n{missing} of {len(rows)} values (songs x stems x systems) are undefined: an "
            "estimate is silent in all frames that would count. The medians leave them out."
        )
    return ["\n".join(points)] if points else []


def _transfer(results: Results) -> list[str]:
    if len(results.inits) < 2:
        return []
    table = results.table("sdr")
    rows = []
    for step in results.steps:
        gain = _difference(table[f"pretrained_{step}"], table[f"scratch_{step}"])
        rows.append([_step_name(results, step), *_cells(gain, "+.2f")])
    return [
        "### What pretraining is worth",
        "Pretrained minus scratch, in dB of `sdr`. Both had the same data and number of steps in "
        "stages 1 and 2. Pretraining is extra.",
        _markdown(["checkpoint", *results.columns], rows),
        "![From scratch to pretrained](../plots/transfer.png)",
    ]


def _ceiling(results: Results) -> list[str]:
    table = results.table("sdr")
    step = results.steps[-1]
    rows = [
        [init, *_cells(_difference(table[f"ceiling_{init}"], table[f"{init}_{step}"]))]
        for init in results.inits
    ]
    return [
        "### How far from the ceiling",
        f"Ceiling minus separation at step {step}, in dB of `sdr`: the loss because E2 does not "
        "find the stem's latents in the mixture. The rest of the error comes from the codec of "
        "stage 1.",
        _markdown(["stage 1 from", *results.columns], rows),
        "![SDR at each checkpoint](../plots/figure2.png)",
    ]


def _groups(results: Results) -> list[str]:
    if not results.groups:
        return []
    rows = []
    for group in (*results.groups, ALL):
        table = results.table("sdr", group)
        songs = str(results.songs(group))
        rows += [
            [GROUP_NAMES[group], songs, _name(results, key), *_cells(table[key].values())]
            for key in results.keys
        ]
    return [
        "### In and out of distribution",
        "All test songs, grouped by whether their instruments occur in the training songs. The "
        "tables above hold the first group only. The baselines show how much of a difference "
        "comes from the songs themselves.",
        _markdown(["group", "songs", "system", *results.columns], rows),
    ]


def _name(results: Results, key: str) -> str:
    if key in results.separations:
        init, step = results.separations[key]
        return f"**{init}**, {_step_name(results, step)}"
    return f"**{refined_init(results.inits)}**, refined" if key == REFINED else results.label(key)


def _step_name(results: Results, step: int) -> str:
    when = f" ({results.checkpoint_names[step]})" if len(results.steps) > 1 else ""
    return f"step {step}{when}"


def _difference(first: dict[str, float], second: dict[str, float]) -> list[float]:
    return [first[column] - second[column] for column in first]


def _cells(values: Iterable[float], form: str = ".2f") -> list[str]:
    return [format(value, form) if math.isfinite(value) else "-" for value in values]


def _markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
