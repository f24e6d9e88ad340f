"""The pictures of the README, drawn from the same numbers as the interactive plots.

The same numbers give the same bytes: the files hold no dates or versions. The colours are the
colour-blind safe ones of Okabe and Ito, and lines also differ by marker or dash. matplotlib is
imported only to draw a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.files import atomic
from ..systems import equaliser
from .others import LABELS, REFINED
from .results import TOTAL, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"pretrained": "#0072B2", "scratch": "#D55E00"}
MARKERS = {"pretrained": "o", "scratch": "s"}
# Horizontal lines in the plot of checkpoints: key -> colour, dash.
LINES = {
    equaliser.NAME: ("#E69F00", "-."),
    "scaled_mixture": ("#555555", "--"),
    "ideal_ratio_mask": ("#009E73", ":"),
}
OTHERS = "others"
"""The place of the systems beside ours, after the checkpoints."""
MARKS = {
    REFINED: ("*", "#0072B2"),
    "open_unmix": ("D", "#CC79A7"),
    "open_unmix_wiener": ("d", "#CC79A7"),
    "hdemucs": ("^", "#E69F00"),
    "conv_tasnet": ("<", "#009E73"),
    "demucs": ("v", "#56B4E9"),
    "wave_unet": (">", "#56B4E9"),
    "control": ("X", "#000000"),
}
"""Marker and colour of the systems beside ours."""
LABEL_WIDTH = 1.9  # inches of a label in a legend
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "legend.frameon": False,
}
STAGES = {"pretrain": "pretraining", "stage1": "stage 1", "stage2": "stage 2"}


def write_figures(results: Results, folder: Path) -> None:
    """Write figure2.png, curves.png and, with both inits, transfer.png to `folder`."""
    pictures = {"figure2": _figure2, "curves": _curves}
    if len(results.inits) == 2:
        pictures["transfer"] = _transfer
    else:
        (folder / "transfer.png").unlink(missing_ok=True)
    for name, draw in pictures.items():
        with picture(folder / f"{name}.png") as figure:
            draw(figure, results)


@contextmanager
def picture(
    path: Path,
    size: tuple[float, float] | None = None,
    style: dict[Any, Any] = STYLE,
    dpi: int = 130,
) -> Iterator[Figure]:
    """Yield an empty figure; it becomes the file `path`, .png or .svg, if the block succeeds.

    `size` is in inches; the block may set it.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system

    kind = path.suffix[1:]
    unsaid = ("Date", "Creator") if kind == "svg" else ("Software",)
    with matplotlib.rc_context(), atomic(path) as unfinished, unfinished.open("wb") as file:
        matplotlib.rcdefaults()  # ignore the user's own matplotlibrc
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(file, format=kind, dpi=dpi, metadata=dict.fromkeys(unsaid))


def _axes(
    figure: Figure, rows: int, columns: int, width: float, height: float, **kwargs: Any
) -> Any:
    figure.set_size_inches(width, height)
    return figure.subplots(rows, columns, squeeze=False, **kwargs)


def _scored(results: Results) -> str:
    """The songs that the scores are means of."""
    songs = f"{results.songs()} {results.split} songs"
    return f"{songs} of instruments heard in training" if results.headline else songs


def _title(figure: Figure, results: Results, title: str, songs: str) -> None:
    context = f"scale {results.scale}, data {results.source}, {songs}"
    figure.suptitle(f"{title}\n{context}", x=0.01, ha="left", fontsize=10)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    fits = max(1, int(figure.get_figwidth() / LABEL_WIDTH))
    rows = -(-len(labels) // fits)
    columns = -(-len(labels) // rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _thousands(step: int) -> str:
    return f"{step // 1000}K" if step >= 1000 and step % 1000 == 0 else str(step)


def _figure2(figure: Figure, results: Results) -> None:
    """SDR at each checkpoint of stage 2, one panel per stem: the paper's Figure 2."""
    columns, table = results.columns, results.table("sdr")
    width = max(1.2 + 1.75 * len(columns), 5.6)  # at least as wide as the title
    labels = len(results.inits) + len(LINES) + len(results.others)
    height = 2.8 + 0.2 * labels / max(1, int(width / LABEL_WIDTH))
    axes = _axes(figure, 1, len(columns), width, height, sharey=True)
    places = range(len(results.steps))
    for axis, stem in zip(axes[0], columns, strict=True):
        for init in results.inits:
            values = [table[f"{init}_{step}"][stem] for step in results.steps]
            axis.plot(places, values, color=COLOURS[init], marker=MARKERS[init], lw=2, label=init)
        for key, (colour, dash) in LINES.items():
            axis.axhline(table[key][stem], color=colour, linestyle=dash, label=LABELS[key])
        count = len(results.others)
        beside = len(places) + (np.arange(count) - (count - 1) / 2) * 0.7 / max(count, 4)
        for place, other in zip(beside, results.others, strict=True):
            marker, colour = MARKS.get(other.name, ("P", "#000000"))
            value = table[other.name][stem]
            label = results.label(other.name)
            axis.plot(place, value, marker, color=colour, ms=7, ls="none", label=label)
        names = [_thousands(step) for step in results.steps]
        names += [OTHERS] if results.others else []
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.4, len(names) - 0.6)
        axis.set_title(stem, fontweight="bold" if stem == TOTAL else "normal")
        axis.set_xlabel("step of stage 2")
    axes[0][0].set_ylabel("SDR (dB, mean of songs)")
    _title(figure, results, "SDR of the separated stems at each checkpoint", _scored(results))
    _legend(figure, axes[0][0])


def _transfer(figure: Figure, results: Results) -> None:
    """Scratch to pretrained, one dumbbell per stem, at the first and the last checkpoint."""
    columns, table = results.columns, results.table("sdr")
    steps = sorted({results.steps[0], results.steps[-1]})
    height = 1.5 + 0.42 * len(columns)
    axes = _axes(figure, 1, len(steps), 4.2 * len(steps), height, sharex=True, sharey=True)
    rows = np.arange(len(columns))[::-1]
    for axis, step in zip(axes[0], steps, strict=True):
        ends = {init: [table[f"{init}_{step}"][stem] for stem in columns] for init in COLOURS}
        axis.hlines(rows, ends["scratch"], ends["pretrained"], color="#bbbbbb", lw=3)
        for init, values in ends.items():
            axis.plot(values, rows, MARKERS[init], color=COLOURS[init], ms=7, ls="none", label=init)
        for row, scratch, pretrained in zip(rows, ends["scratch"], ends["pretrained"], strict=True):
            middle = (scratch + pretrained) / 2
            text = f"{pretrained - scratch:+.2f} dB"
            axis.annotate(
                text, (middle, row), (0, 5), textcoords="offset points", ha="center", fontsize=8
            )
        axis.set_yticks(rows, columns)
        axis.set_ylim(-0.6, len(columns) - 0.4)
        axis.set_title(f"step {_thousands(step)} of stage 2")
        axis.set_xlabel("SDR (dB, mono, mean of songs)")
    title = "What pretraining is worth: from scratch to pretrained"
    _title(figure, results, title, _scored(results))
    _legend(figure, axes[0][0])


def _curves(figure: Figure, results: Results) -> None:
    """Loss and perplexity of both stages, one column per stem; points are validation losses."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    curves = results.curves
    kinds = [
        ("stage1", "loss", "stage 1: loss"),
        ("stage2", "loss", "stage 2: loss"),
        ("stage1", "perplexity", "stage 1: codebook\nperplexity"),
        ("stage2", "perplexity", "stage 2: codebook\nperplexity"),
    ]
    stems = results.stems
    width, height = 1.4 + 2.2 * len(stems), 1.2 + 1.7 * len(kinds)
    axes = _axes(figure, len(kinds), len(stems), width, height, sharex="row")
    for row, (stage, name, label) in zip(axes, kinds, strict=True):
        for axis, stem in zip(row, stems, strict=True):
            for init in results.inits:
                run = curves[
                    (curves["stage"] == stage) & (curves["stem"] == stem) & (curves["init"] == init)
                ]
                line = run[run["name"] == name]
                dash = "-" if init == "pretrained" else (0, (4, 1.5))
                axis.plot(line["step"], line["value"], color=COLOURS[init], ls=dash, label=init)
                if name == "loss":
                    points = run[run["name"] == "valid_loss"]
                    axis.plot(
                        points["step"],
                        points["value"],
                        MARKERS[init],
                        color=COLOURS[init],
                        mec="white",
                        ls="none",
                        label=f"{init}, validation",
                    )
            if name == "loss":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.yaxis.set_minor_formatter(NullFormatter())
            if stage == kinds[0][0] and name == kinds[0][1]:
                axis.set_title(stem)
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    title = "Training: loss (logarithmic) and perplexity of the codes in use"
    _title(figure, results, title, "training and validation songs")
    _legend(figure, axes[0][0])
