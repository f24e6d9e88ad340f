"""The parameters of an experiment: params.yaml, composed from conf/, and its checks.

conf/ is the source of truth. `dvc exp run -S` and `jukesep compose` compose params.yaml from it;
`dvc repro` reads params.yaml as it is, so run `jukesep compose` after an edit in conf/. This
module does not import torch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from . import paths
from .errors import UserError
from .files import write_text

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
# Sizes of a model. A model as a file (`separation.models`) has the same bounds.
Rate = Annotated[int, Field(ge=1000, le=10_000_000)]
Size = Annotated[int, Field(ge=1, le=1 << 16)]
Depth = Annotated[int, Field(ge=1, le=64)]
Growth = Annotated[int, Field(ge=1, le=64)]
Codes = Annotated[int, Field(ge=1, le=1 << 24)]
# Of a spectrogram, in samples.
Window = Annotated[int, Field(ge=16, le=1 << 16, multiple_of=4)]
Halvings = Annotated[int, Field(ge=1, le=16)]
BLOCKS = Field(min_length=1, max_length=8)
Init = Literal["pretrained", "scratch"]
Stem = Literal["drums", "bass", "other", "vocals"]
Bottleneck = Literal["quantise", "soft", "bypass"]
Temperature = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A section of params.yaml: read-only, numbers finite; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    source: Literal["band", "musdb18hq", "musdb18", "folder"]
    root: str | None
    depends_on: str
    valid_songs: Count
    train_on_validation: bool
    accept_licence: bool

    @model_validator(mode="after")
    def _rooted(self) -> Data:
        if self.source == "band":
            return self
        if self.root in (None, "???"):  # as conf/data leaves it
            raise ValueError(
                f"root is not set: data={self.source} needs the absolute path of the folder with "
                "train/ and test/: -S data.root=/absolute/path"
            )
        # Queued experiments run in another folder.
        if not Path(str(self.root)).is_absolute():
            raise ValueError(f"root must be an absolute path, found {self.root!r}")
        return self


class Band(Section):
    seed: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=1)]
    train: Count
    valid: Count
    test: Count
    pretrain: Count
    soundfonts: list[str]

    @field_validator("soundfonts")
    @classmethod
    def _absolute(cls, paths: list[str]) -> list[str]:
        # Queued experiments run in another folder.
        for path in paths:
            if not Path(path).is_absolute():
                raise ValueError(f"must be absolute paths, found {path!r}")
        return paths


class Model(Section):
    sample_rate: Rate
    width: Size
    depth: Depth
    downs: Annotated[tuple[Halvings, ...], BLOCKS]
    dilation_growth: Growth
    latent_dim: Size
    codes: Codes

    @model_validator(mode="after")
    def _reaching(self) -> Model:
        if self.dilation_growth ** (self.depth - 1) >= 2**31:
            raise ValueError(
                f"dilation_growth={self.dilation_growth} at depth={self.depth} gives dilations of "
                "2^31 and more: lower one of the two"
            )
        return self


class Weights(Section):
    source: Literal["pretrain", "file", "jukebox"]
    file: str | None
    depends_on: str
    level: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None

    @model_validator(mode="after")
    def _tracked(self) -> Weights:
        wanted = {"pretrain": str(paths.PREPARED), "file": self.file}
        if self.source == "file" and self.file in (None, "???"):  # as conf/weights leaves it
            raise ValueError(
                "file is not set: weights=file needs the absolute path of a checkpoint in "
                "Jukebox's format: -S weights=file -S weights.file=/absolute/path"
            )
        if self.source == "file" and not Path(str(self.file)).is_absolute():
            raise ValueError(f"file must be an absolute path, found {self.file!r}")
        # Otherwise DVC would not notice when the source of the weights changes.
        if self.depends_on != wanted.get(self.source, self.depends_on):
            raise ValueError(
                f"source is {self.source}, but depends_on is {self.depends_on}. Set both with "
                f"-S weights={self.source}"
            )
        return self


class CodebookParams(Section):
    decay: Share
    revival_threshold: Weight


class Losses(Section):
    linf: Weight
    linf_k: Count
    multispectral: Weight
    commit: Weight


class Recipe(Section):
    """The settings of a training. Rates are per step, lengths in samples, intervals in steps."""

    steps: Count
    batch: Count
    segment: Count
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)]
    final_rate: Annotated[float, Field(gt=0, le=1)]
    clip: Annotated[float, Field(gt=0)]
    weight_ema: Annotated[float, Field(ge=0, lt=1)]
    log_every: Count
    valid_every: Count
    valid_segments: Count
    workers: Annotated[int, Field(ge=0)]


class Stage1(Recipe):
    """`codebook_init`: without weights from a file, the codebook starts from latents or zeros."""

    codebook_init: Literal["data", "zeros"]


class Stage1Steps(Section):
    """Steps of stage 1 for single stems; None means `stage1.steps`."""

    drums: Count | None
    bass: Count | None
    other: Count | None
    vocals: Count | None


class Stage2(Recipe):
    """`checkpoints`: the steps at which stage 2 is saved and evaluated.

    `mixtures`: whether E2 hears the songs' own mixtures, or each stem with others of other songs.
    `input_scale` and `standardise` condition E2 while it is trained: `training.conditioning`.
    """

    checkpoints: tuple[Count, ...]
    init: Literal["random", "jukebox", "stage1"]
    loss: Literal["mse", "mse_linf"]
    blend: Literal["shared", "independent"]
    mixtures: Literal["own", "remixed"]
    input_scale: Annotated[float, Field(gt=0)]
    standardise: bool

    @model_validator(mode="after")
    def _rising(self) -> Stage2:
        found = list(self.checkpoints)
        if not found or found != sorted(set(found)) or found[-1] != self.steps:
            raise ValueError(f"checkpoints must rise and end at steps={self.steps}, found {found}")
        return self

    @model_validator(mode="after")
    def _paired(self) -> Stage2:
        if (self.mixtures, self.blend) == ("remixed", "independent"):
            raise ValueError(
                "mixtures=remixed sums the stems that it has mixed down, which blend=independent "
                "contradicts. Set blend=shared or mixtures=own"
            )
        return self


class OpenUnmixSizes(Section):
    hidden: Annotated[int, Field(ge=2, le=1 << 14, multiple_of=2)]
    layers: Depth
    window: Window


class HDemucsSizes(Section):
    channels: Annotated[int, Field(ge=4, le=1 << 12, multiple_of=4)]
    depth: Annotated[int, Field(ge=5, le=8)]
    window: Window


class ConvTasNetSizes(Section):
    filters: Size
    features: Size
    hidden: Size
    layers: Annotated[int, Field(ge=1, le=16)]
    stacks: Depth


class WaveUNetSizes(Section):
    """`norm_starts`: the first layer, counted from 0, with a group normalisation of 4 groups."""

    channels: Annotated[int, Field(ge=2, le=1 << 12)]
    depth: Annotated[int, Field(ge=1, le=8)]
    norm_starts: Annotated[int, Field(ge=3)]  # an earlier layer may not have channels in fours


class DemucsSizes(WaveUNetSizes):
    lstm: Annotated[int, Field(ge=0, le=8)]


class ControlSizes(Section):
    channels: Size
    depth: Annotated[int, Field(ge=1, le=8)]
    window: Window


Sizes = TypeVar("Sizes", bound=Section)


class Peer(Recipe, Generic[Sizes]):
    """`network`: the sizes of the network, arguments of `build` in jukesep/peers."""

    network: Sizes

    @model_validator(mode="after")
    def _long_enough(self) -> Peer[Sizes]:
        window = getattr(self.network, "window", 1)
        if self.segment < window:
            raise ValueError(f"segment={self.segment} is shorter than network.window={window}")
        return self


class Peers(Section):
    """The peers to train, by name; None for the others."""

    open_unmix: Peer[OpenUnmixSizes] | None = None
    hdemucs: Peer[HDemucsSizes] | None = None
    conv_tasnet: Peer[ConvTasNetSizes] | None = None
    demucs: Peer[DemucsSizes] | None = None
    wave_unet: Peer[WaveUNetSizes] | None = None
    control: Peer[ControlSizes] | None = None

    def recipe(self, name: str) -> Peer[Any]:
        """The recipe of a chosen peer. UserError for another name."""
        found: Peer[Any] | None = getattr(self, name, None)
        if name not in type(self).model_fields or found is None:
            chosen = ", ".join(self.chosen) or "none"
            raise UserError(f"{paths.PARAMS}: the peers are {chosen}, and not {name}.")
        return found

    @property
    def chosen(self) -> list[str]:
        """The names of the peers that have a recipe."""
        return [name for name, recipe in self if recipe]


class Separation(Section):
    """How a model runs over a song: keyword arguments of `separation.chunked.apply_chunked`."""

    chunk: Count
    chunking: Literal["exact", "hard", "published"]
    bottleneck: Bottleneck
    temperature: Temperature = 20.0


class Evaluate(Section):
    split: Literal["valid", "test"]
    museval: bool
    audio: bool


class Params(Section):
    """params.yaml."""

    scale: str
    stem: Literal["all", "drums", "bass", "other", "vocals"]
    stems: tuple[Stem, ...]
    inits: tuple[Init, ...]
    seed: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Annotated[int, Field(ge=0)]
    precision: Literal["fp32", "tf32", "bf16"]
    save_minutes: Weight
    sample_minutes: Weight
    data: Data
    band: Band
    model: Model
    weights: Weights
    codebook: CodebookParams
    losses: Losses
    pretrain: Recipe
    stage1: Stage1
    stage1_steps: Stage1Steps
    stage2: Stage2
    peers: Peers
    separation: Separation
    evaluate: Evaluate

    def stage1_of(self, stem: str) -> Stage1:
        """Stage 1's recipe for a stem, with the steps of that stem."""
        steps = getattr(self.stage1_steps, stem)
        return self.stage1 if steps is None else self.stage1.model_copy(update={"steps": steps})

    def stage1_checkpoint(self, stem: str, init: str) -> Path:
        """The end of a stem's stage 1."""
        return paths.checkpoint("stage1", stem, init, self.stage1_of(stem).steps)

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        for name, values in (("stems", self.stems), ("inits", self.inits)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} needs one or more different values, found {list(values)}")
        if self.data.train_on_validation and self.evaluate.split == "valid":
            raise ValueError(
                "evaluate.split=valid with data.train_on_validation=true would score songs that "
                "were trained on: change one of the two"
            )
        hop = 2 ** sum(self.model.downs)
        for name in ("pretrain", "stage1", "stage2"):
            segment = getattr(self, name).segment
            if segment % hop or segment < 2048:
                raise ValueError(
                    f"{name}.segment is {segment}: it must be a multiple of the hop ({hop}) and "
                    "at least 2048, the longest window of the spectral loss"
                )
        return self


def load(path: str | Path = paths.PARAMS) -> Params:
    """Read and check params.yaml. UserError that names every invalid setting."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run `jukesep compose` to write it.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({error}). Run `jukesep compose` again.") from error
    return _check(content, path)


def compose(overrides: list[str], conf: str | Path = paths.CONF) -> str:
    """The text of params.yaml for `overrides`, the same bytes as `dvc exp run -S` writes.

    UserError for a file of `conf` that is not YAML, and for an override that is not possible.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(Path(conf).resolve()), version_base=None):
            composed = hydra_compose("config", overrides=overrides)
        OmegaConf.resolve(composed)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        said, *_ = re.split(r"\s*\n(?:To append|Config search path)", str(error))
        raise UserError(f"{conf}: {said}\ndocs/parameters.md lists all parameters.") from error
    return OmegaConf.to_yaml(composed)


def write_composed(path: Path, overrides: list[str]) -> None:
    """Compose, check and write params.yaml. Writes nothing if a setting is invalid."""
    text = compose(overrides)
    _check(yaml.safe_load(text), "conf")
    write_text(path, text)


def _check(content: object, source: str | Path) -> Params:
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'params'}: {fault['msg']}"
            + ("" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})")
            for fault in error.errors()
        ]
        raise UserError(
            f"{source}: {len(faults)} invalid setting(s):\n  " + "\n  ".join(faults)
        ) from error


def item(stage: str | None, **choices: Collection[str]) -> list[str]:
    """Return a stage's item of dvc.yaml from the command line: a value for each name, in order.

    `stage` is the stage's docstring, for its help. Exits with status 2 and says what is wrong if a
    value is missing, or is none of the choices, which are those of params.yaml.
    """

    def among(allowed: Collection[str]) -> Callable[[str], str]:
        def checked(value: str) -> str:
            if value not in allowed:
                there = ", ".join(allowed) or "none"
                raise argparse.ArgumentTypeError(f"{value!r} is not in {paths.PARAMS}: {there}")
            return value

        return checked

    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{Path(sys.argv[0]).stem}",
        description=stage,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    for name, allowed in choices.items():
        parser.add_argument(name, type=among(allowed), help=f"one of: {', '.join(allowed)}")
    return list(vars(parser.parse_args()).values())
