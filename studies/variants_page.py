"""docs/variants.md, from the scores of `studies.variants` in docs/variants.csv."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.markdown import fill, table
from jukesep.songs.manifest import GROUPS
from studies import experiments, records
from studies.ablations import verdict

PAGE, SCORES = Path("docs/variants.md"), Path("docs/variants.csv")
VARIANTS = ("separate", "shared", "end to end")  # the others are compared with the first
SPLITS = {"valid": "Validation", "test": "Test"}
# Steps that take the processor time of one step of stage 2 for each of the four stems.
MATCHING_STEPS, MASKING_STEPS = 2.25, 0.92
MATCHING_SHARE = 0.6  # of the time of "end to end"


@dataclass(frozen=True)
class Score:
    """The paper's SDR in dB of a variant under a seed: the mean over songs of a group and stems."""

    variant: str
    seed: int
    split: str
    songs: str
    quantised: float
    bypass: float
    quantised_refined: float
    bypass_refined: float
    seconds: float
    """Processor time of the training, all stems together."""
    processor: str
    commit: str

    @property
    def sdrs(self) -> list[float]:
        """One for each of KINDS."""
        return [getattr(self, kind) for kind in KINDS]


KINDS = {
    "quantised": "plain, quantised",
    "bypass": "plain, bypass",
    "quantised_refined": "refined, quantised",
    "bypass_refined": "refined, bypass",
}


def load(path: Path = SCORES) -> list[Score]:
    """The scores kept so far."""
    return records.load(Score, path)


def page(scores: Sequence[Score]) -> str:
    """docs/variants.md."""
    groups = dict.fromkeys((score.split, score.songs) for score in scores)
    return fill(
        "variants",
        experiments.PAGES,
        matching=f"{MATCHING_STEPS:g}",
        masking=f"{MASKING_STEPS:g}",
        share=f"{100 * MATCHING_SHARE:.0f} %",
        rest=f"{100 * (1 - MATCHING_SHARE):.0f} %",
        costs=_costs(scores),
        commits=_listed(score.commit for score in scores),
        processor=_listed(score.processor for score in scores),
        results="\n\n".join(_group(scores, *group) for group in groups) or "Not run yet.",
    )


def _costs(scores: Sequence[Score]) -> str:
    """Processor time: the mean over the seeds, and relative to the first variant."""
    means = {
        name: statistics.mean({s.seed: s.seconds for s in scores if s.variant == name}.values())
        for name in VARIANTS
        if any(score.variant == name for score in scores)
    }
    lines = [["variant", "processor s", "relative"]]
    for name, mean in means.items():
        relative = f"{mean / means[VARIANTS[0]]:.2f} x" if VARIANTS[0] in means else ""
        lines.append([name, f"{mean:.0f}", relative])
    return table(lines)


def _group(scores: Sequence[Score], split: str, songs: str) -> str:
    """A heading, a table of every seed, and what the differences from the first variant say."""
    found: dict[str, dict[int, Score]] = {name: {} for name in VARIANTS}
    for score in scores:
        if (score.split, score.songs) == (split, songs):
            found[score.variant][score.seed] = score
    lines = [["variant", "seed", *KINDS.values()]]
    for name, seeds in found.items():
        for seed, score in seeds.items():
            lines.append([name, str(seed), *(f"{value:.2f}" for value in score.sdrs)])
        if seeds:
            means = map(
                statistics.mean, zip(*(score.sdrs for score in seeds.values()), strict=True)
            )
            lines.append([f"**{name}**", "mean", *(f"**{mean:.2f}**" for mean in means)])
    first, said = found[VARIANTS[0]], []
    for name in VARIANTS[1:]:
        both = [(found[name][seed].sdrs, first[seed].sdrs) for seed in found[name] if seed in first]
        for place, kind in enumerate(KINDS.values()) if both else ():
            differences = [after[place] - before[place] for after, before in both]
            said.append(f"- {name} against {VARIANTS[0]}, {kind}: {verdict(differences)}.")
    title = f"{SPLITS[split]} songs of {GROUPS.get(songs, songs)}"
    return "\n\n".join([f"## {title}", table(lines), "\n".join(said)]).rstrip()


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values))) or "none"
