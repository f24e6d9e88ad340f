"""What the stems in an output folder were made from: OUTPUT/separated.json.

For each file the record has the song's name and digest, the digests of the models, the options that
change samples, and the file's own digest. Files that are there already are kept if they are what
the same command would write, and are never taken for something else.

The files of a song belong together in two cases: a residual is the mixture without exactly the
stems beside it, and stems may be lowered by one gain. Then they have the names of all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.files import alone, appear, temporary
from ..base.unchanged import file_digest, marks
from ..songs.manifest import STEMS
from .names import RECORD, Job, Options, shown

FORMAT = 1
REPLACE = "Pass --overwrite to replace it, or choose another --output or --filename."
ELSEWHERE = "Choose another --output or --filename, or move it elsewhere."

Entry = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What determines the samples of stems, beside the song and `Options`."""

    models: Mapping[str, str]
    """Stem -> digest of its model."""
    refine: str
    """Name of the refinement, or "none"."""
    shifts: int = 1
    precision: str = "fp32"
    device: str = "cpu"


class Origins:
    """The record of an output folder, for one run. UserError if it is not a record."""

    def __init__(self, options: Options, recipe: Recipe) -> None:
        self.path = options.output / RECORD
        self._options = options
        self._recipe = recipe
        self._version = version("jukesep")
        self._known = self._load()

    def missing(self, job: Job, sha256: str) -> dict[str, Path]:
        """Return the files to write for a song with this digest, by stem.

        UserError if a file was made from something else and is not to be replaced, or if the new
        files would lie beside files that they do not belong to.
        """
        wanted = self._entries(job, sha256)
        there = {n: p for n, p in job.targets.items() if p.exists()}
        if self._options.overwrite:
            there = {}
        whole = len(there) == len(job.targets)
        for name, path in there.items():
            # A stem alone stays what it is, whatever was written with it.
            by_itself = whole and name != job.residual
            if difference := self._difference(path, name, wanted[name], by_itself):
                raise UserError(f"{path}: {difference}. {REPLACE}")
        if whole:
            return {}
        for name, path in job.beside.items():
            if path.exists() and (wrong := self._clash(name, path, wanted)):
                raise UserError(f"{path}: {wrong}. {ELSEWHERE}")
        if self._options.one_gain:
            return job.targets
        return {name: path for name, path in job.targets.items() if name not in there}

    def appear(self, job: Job, sha256: str, complete: Mapping[str, Path]) -> None:
        """Let the complete files of a song appear, {name: temporary file}, with their entries.

        Files that another run wrote in the meantime are kept. UserError as for `missing`.
        """
        written = {
            name: {
                **entry,
                "file_sha256": file_digest(complete[name]),
                "marks": _marks(complete[name]),
            }
            for name, entry in self._entries(job, sha256).items()
            if name in complete
        }
        with alone(self.path):
            self._known = self._load()
            missing = self.missing(job, sha256)
            new = {name: path for name, path in missing.items() if name in complete}
            if not new:
                return
            self._known |= {self._key(path): written[name] for name, path in new.items()}
            content = {"format": FORMAT, "files": dict(sorted(self._known.items()))}
            with temporary(self.path) as record:
                text = json.dumps(content, indent=1, ensure_ascii=False)
                record.write_text(f"{text}\n", encoding="utf-8")
                stems = {complete[name]: path for name, path in new.items()}
                appear({record: self.path, **stems})

    def _load(self) -> dict[str, Entry]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path}: cannot be read ({error}). It says what the stems beside it were "
                "made from: move it elsewhere, or choose another --output."
            ) from error
        entries = found.get("files") if isinstance(found, dict) else None
        if not isinstance(entries, dict) or found.get("format") != FORMAT:
            raise UserError(
                f"{self.path}: is not a record of this version of jukesep. Move it elsewhere, or "
                "choose another --output."
            )
        return {key: entry for key, entry in entries.items() if isinstance(entry, dict)}

    def _key(self, path: Path) -> str:
        return path.relative_to(self._options.output).as_posix()

    def _entries(self, job: Job, sha256: str) -> dict[str, Entry]:
        """The entries of a song's files, by name, without what describes the files themselves."""
        options, recipe = self._options, self._recipe
        stems = [name for name in job.targets if name != job.residual]
        entries = {}
        for name in job.targets:
            used = stems if name == job.residual else [name]
            if recipe.refine != "none":
                used = list(recipe.models)
            together = options.one_gain or name == job.residual
            entries[name] = {
                "song": "standard input" if job.song == "-" else Path(job.song).name,
                "song_sha256": sha256,
                "models": {stem: recipe.models[stem] for stem in sorted(used)},
                "refine": recipe.refine,
                "shifts": recipe.shifts,
                "precision": recipe.precision,
                "device": recipe.device,
                "chunk": options.chunk or "default",
                "format": options.format,
                "clip": options.clip if options.form.limited or options.clip == "clamp" else "none",
                "together": sorted(job.targets) if together else [],
                "jukesep": self._version,
            }
        return entries

    def _difference(self, path: Path, name: str, wanted: Entry, by_itself: bool) -> str:
        """What makes an existing file another than the wanted one, or nothing."""
        entry = self._known.get(self._key(path))
        if entry is None:
            return f"exists, and {RECORD} does not say what it was made from"
        if difference := _other_song(entry, wanted) or _other_way(entry, wanted):
            return difference
        if not by_itself and entry.get("together") != wanted["together"]:
            earlier, now = (_others(one, name) for one in (entry, wanted))
            return f"was made {earlier}; it would now be made {now}"
        if entry.get("marks") != _marks(path) and entry.get("file_sha256") != file_digest(path):
            return "was changed after it was written"
        return ""

    def _clash(self, name: str, path: Path, wanted: Mapping[str, Entry]) -> str:
        """Why new files cannot lie beside an existing one, or nothing."""
        entry, new = self._known.get(self._key(path)), next(iter(wanted.values()))
        beside = f"would lie beside {', '.join(wanted)}"
        if entry is not None and (difference := _other_song(entry, new)):
            return f"{difference}, and {beside}"
        if name not in STEMS or any(stem not in STEMS for stem in wanted):
            return f"{beside}, but a residual lies beside exactly the stems that it lacks"
        if self._options.one_gain:
            return f"{beside}, which may be lowered by another gain"
        return ""


def _others(entry: Entry, name: str) -> str:
    """Which stems a file belongs together with, beside itself."""
    together = entry.get("together")
    names = [str(one) for one in together if one != name] if isinstance(together, list) else []
    return f"together with {shown(', '.join(names))}" if names else "alone"


def _other_song(entry: Entry, wanted: Entry) -> str:
    if entry.get("song_sha256") == wanted["song_sha256"]:
        return ""
    same = entry.get("song") == wanted["song"]
    which = "an earlier" if same else "another song,"
    return f"was made from {which} {shown(str(entry.get('song')))}"


def _other_way(entry: Entry, wanted: Entry) -> str:
    for name in ("refine", "shifts", "precision", "device", "chunk", "format", "clip"):
        if entry.get(name) != wanted[name]:
            return f"was made with --{name} {shown(str(entry.get(name)))}"
    return "was made with other models" if entry.get("models") != wanted["models"] else ""


def _marks(path: Path) -> list[int] | None:
    """Size, time of the last change and inode: a rename keeps them."""
    return next(iter((marks([path]) or {}).values()), None)
