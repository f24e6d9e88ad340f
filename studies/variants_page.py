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
# Two questions. The first answer to each is stage 2 as it is; the others are compared with it.
ENCODERS = ("separate", "shared", "end to end")
MIXTURES = ("own", "remixed", "varied")
VARIANTS = (*ENCODERS, *MIXTURES)
INIT, SCRATCH = "pretrained", "scratch"
FROM_SCRATCH = ("separate", "end to end")  # are also trained from scratch
SPLITS = {"valid": "Validation", "test": "Test"}
# Steps that take the processor time of one step of stage 2 for each of the four stems.
MATCHING_STEPS, MASKING_STEPS = 2.25, 0.92
MATCHING_SHARE = 0.6  # of the time of "end to end"
# "varied" changes each stem by up to so much, up or down.
PITCHES, LEVELS = 3, 4  # semitones, dB


@dataclass(frozen=True)
class Score:
    """The paper's SDR in dB of a variant under a seed: the mean over songs of a group and stems."""

    variant: str
    init: str
    """Of the models of stage 1."""
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
    every, scores = scores, [score for score in scores if score.init == INIT]
    return fill(
        "variants",
        experiments.PAGES,
        matching=f"{MATCHING_STEPS:g}",
        masking=f"{MASKING_STEPS:g}",
        share=f"{100 * MATCHING_SHARE:.0f} %",
        rest=f"{100 * (1 - MATCHING_SHARE):.0f} %",
        pitches=str(PITCHES),
        levels=str(LEVELS),
        encoder_costs=_costs(scores, ENCODERS),
        mixture_costs=_costs(scores, MIXTURES),
        commits=_listed(score.commit for score in every),
        processor=_listed(score.processor for score in scores),
        transfer="\n\n".join(_transfer(every, *group) for group in groups) or "Not run yet.",
        encoders="\n\n".join(_group(scores, ENCODERS, *group) for group in groups),
        mixtures="\n\n".join(_group(scores, MIXTURES, *group) for group in groups),
    )


def _costs(scores: Sequence[Score], names: Sequence[str]) -> str:
    """Processor time under each seed, and the mean of its ratios to the first variant's."""
    times = {name: {s.seed: s.seconds for s in scores if s.variant == name} for name in names}
    lines = [["variant", "seeds", "processor s", "relative"]]
    for name, taken in times.items():
        first = times[names[0]]
        ratios = [seconds / first[seed] for seed, seconds in taken.items() if seed in first]
        seeds, seconds = ", ".join(map(str, taken)), ", ".join(f"{s:.0f}" for s in taken.values())
        relative = f"{statistics.mean(ratios):.2f} x" if ratios else ""
        if taken:
            lines.append([name, seeds, seconds, relative])
    return table(lines)


def _group(scores: Sequence[Score], names: Sequence[str], split: str, songs: str) -> str:
    """A heading, a table of every seed, and what the differences from the first variant say."""
    found: dict[str, dict[int, Score]] = {name: {} for name in names}
    for score in scores:
        if (score.split, score.songs) == (split, songs) and score.variant in names:
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
    first, said = found[names[0]], []
    for name in names[1:]:
        both = [(found[name][seed].sdrs, first[seed].sdrs) for seed in found[name] if seed in first]
        for place, kind in enumerate(KINDS.values()) if both else ():
            differences = [after[place] - before[place] for after, before in both]
            said.append(f"- {name} against {names[0]}, {kind}: {verdict(differences)}.")
    title = f"{SPLITS[split]} songs of {GROUPS.get(songs, songs)}"
    return "\n\n".join([f"### {title}", table(lines), "\n".join(said)]).rstrip()


def _transfer(scores: Sequence[Score], split: str, songs: str) -> str:
    """What pretraining gains in each variant that was also trained from scratch."""
    at = {
        (score.variant, score.init, score.seed): score.sdrs
        for score in scores
        if (score.split, score.songs) == (split, songs)
    }
    lines, said = [["variant", "seed", *KINDS.values()]], []
    for name in FROM_SCRATCH:
        seeds = [seed for one, init, seed in at if (one, init) == (name, SCRATCH)]
        gains = [
            [a - b for a, b in zip(at[name, INIT, seed], at[name, SCRATCH, seed], strict=True)]
            for seed in seeds
            if (name, INIT, seed) in at
        ]
        for seed, gain in zip(seeds, gains, strict=False):
            lines.append([name, str(seed), *(f"{value:+.2f}" for value in gain)])
        for place, kind in enumerate(KINDS.values()) if gains else ():
            if name == VARIANTS[0] or "refined" in kind:  # the plain stems of others are of no use
                found = verdict([gain[place] for gain in gains])
                said.append(f"- {name}, {kind}: pretrained against scratch, {found}.")
    if not said:
        return "Not run yet."
    title = f"{SPLITS[split]} songs of {GROUPS.get(songs, songs)}:"
    return "\n\n".join([title, table(lines), "\n".join(said)])


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values))) or "none"
