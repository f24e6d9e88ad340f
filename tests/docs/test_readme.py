"""README.md and docs/ are true: names, files, commands, parameters, examples."""

import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import soundfile
import torch
import yaml
from documents import PAGES, ROOT, blocks, commands, made_by_the_pipeline, read
from settings import flat
from typer.testing import CliRunner

import jukesep
from jukesep import cli
from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.model.jukebox import save_encoder, save_jukebox
from jukesep.report import readme
from jukesep.separation import models

RATE = 8000


def _model(seed):
    torch.manual_seed(seed)
    vqvae = jukesep.VQVAE(jukesep.Architecture(width=4, depth=2, latent_dim=4, codes=16))
    vqvae.codebook.restore(torch.randn(16, 4), 1.0)
    return vqvae


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder as the README's examples expect it, entered: songs, weights, models."""
    for seed, stem in enumerate(jukesep.STEMS):
        vqvae, hps = _model(seed), {"sample_rate": RATE}
        about = {"init": "pretrained", "step": 6, "data": "noise", "licence": "none"}
        models.save(tmp_path / "models/separator", stem, vqvae, about | hps)
    save_jukebox(_model(9), tmp_path / "runs/weights/pretrained/vqvae.pth.tar", 0)
    save_jukebox(_model(3), tmp_path / "stage1.pth.tar", 80_001, {"sr": RATE})
    save_encoder(_model(4).encoder, tmp_path / "stage2.pth.tar", 20_001, {"sr": RATE})
    stems = np.random.default_rng(1).uniform(-0.2, 0.2, (4, RATE, 2))
    folder = tmp_path / "musdb18hq/test/Somebody - Something"
    folder.mkdir(parents=True)
    for name, stem in zip(("mixture", *jukesep.STEMS), (stems.sum(0), *stems), strict=True):
        soundfile.write(folder / f"{name}.wav", stem, RATE)
        if name in jukesep.STEMS:
            estimate = tmp_path / "separated/htdemucs/Somebody - Something" / f"{name}.wav"
            estimate.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(estimate, stem, RATE)
    (tmp_path / "mine.py").write_text(
        "def separate(mixture, sample_rate):\n    return {'vocals': 0.5 * mixture}\n"
    )
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * 11025 + 3, 2))
    soundfile.write(tmp_path / "song.wav", noise, 11025)
    (tmp_path / "songs").mkdir()
    soundfile.write(tmp_path / "songs/one.wav", noise, 11025)
    soundfile.write(tmp_path / "more.flac", noise, 11025)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(page):
    """All examples of a page, one after the other: each may use the names of those before it."""
    names = {}
    for example in blocks(read(page), "python"):
        exec(compile(example, page, "exec"), names)
    return names


def test_the_python_examples_run(trained, capsys):
    names = _run("docs/python.md")
    mixture, stems = names["mixture"], names["stems"]
    assert tuple(stems) == jukesep.STEMS
    assert all(stem.shape == mixture.shape == (2, 22053) for stem in stems.values())
    streamed, *printed = capsys.readouterr().out.splitlines()
    assert streamed.split()[0] == "22053"
    assert len(printed) == 3
    # dB: refined stems add up to the mixture, as far as the models' rate goes: white noise loses
    # what is between 4000 and 5512.5 Hz.
    assert [float(line) for line in printed] == pytest.approx([5.6] * 3, abs=0.5)
    samples = names["samples"]
    assert samples == 22048
    assert names["latents"].shape == names["quantised"].shape == (1, 4, samples // 8)
    assert names["codes"].shape == (1, samples // 8)
    assert names["codes"].dtype == torch.int64
    assert names["reconstruction"].shape == names["audio"].shape == (1, 1, samples)


def test_the_jukesep_commands_run(trained):
    """Each of all pages once: a second run would find the output of the first."""
    shutil.copytree(ROOT / "conf", trained / "conf")
    found = [" ".join(words[3:]) for words in commands() if words[:3] == ["uv", "run", "jukesep"]]
    said = {}
    for line in dict.fromkeys(found):
        result = CliRunner().invoke(cli.app, shlex.split(line), catch_exceptions=False)
        assert result.exit_code == 0, (line, result.output)
        said[line] = result.stdout
    assert {line.split()[0] for line in said} == {
        "separate", "listen", "import", "info", "score", "evaluate", "fetch", "status", "clean",
        "compose",
    }  # fmt: skip

    def folder(name):
        return {path.name for path in Path(name).iterdir()}

    every = {f"{stem}.wav" for stem in jukesep.STEMS}
    assert folder("stems/song") == folder("plain/song") == every
    assert folder("karaoke/song") == {"vocals.wav", "no_vocals.wav"}
    assert folder("mine-stems/song") == {"vocals.wav"}
    assert folder("stems") == {"song", "one", "more", "separated.json"}
    assert folder("stems/one") == {f"{stem}.flac" for stem in jukesep.STEMS}
    for path in (*Path().glob("*/song/*.wav"), *Path("stems").glob("*/*.flac")):
        header = soundfile.info(path)
        assert (header.samplerate, header.channels, header.frames) == (11025, 2, 22053)
    assert soundfile.info("stems/song/drums.wav").subtype == "FLOAT"
    assert Path("stems-listen/index.html").is_file()
    assert all(stem in said["info models/separator"] for stem in jukesep.STEMS)
    assert all(
        "Somebody - Something" in text
        for line, text in said.items()
        if line.startswith(("evaluate", "score"))
    )
    assert re.search(
        r"^Somebody - Something,test,vocals,separation,,20001,sdr,-?\d+\.\d+",
        Path("scores.csv").read_text(),
        re.MULTILINE,
    )
    assert params.load("params.yaml").scale == "demo"
    assert said["status"].startswith("No unfinished trainings")
    assert said["clean"].startswith("Nothing to delete")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    made = made_by_the_pipeline()
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path = (page.parent / target).resolve().relative_to(ROOT)
        generated = {path.as_posix(), *(parent.as_posix() for parent in path.parents)} & made
        assert generated or (ROOT / path).exists(), target


def _documented():
    """Key -> its values at the scales paper and demo, as docs/parameters.md has them."""
    for line in read("docs/parameters.md").splitlines():
        if line.startswith("| `") and line.count("|") == 6:
            key, _, _, *values = (cell.strip() for cell in line.strip("|").split("|"))
            for name in ("pretrain", "stage1", "stage2") if key.startswith("`*") else ("*",):
                values_read = [yaml.safe_load(value.strip("`")) for value in values]
                yield key.strip("`").replace("*", name), values_read


def test_every_parameter_is_documented_with_its_values():
    documented = dict(_documented())
    for column, scale in enumerate(("paper", "demo")):
        composed = params.compose([f"scale={scale}", "peers=none"], ROOT / "conf")
        found = {key: values[column] for key, values in documented.items()}
        assert found == dict(flat(yaml.safe_load(composed)))


def test_every_size_of_a_peer_is_documented():
    """Sizes and the peers that have them; the other settings of a peer are a training's."""
    rows = [
        [set(re.findall(r"`(\w+)`", cell)) for cell in line.split("|")[1:3]]
        for line in read("docs/parameters.md").splitlines()
        if re.match(r"\| `\w+`.* \| `(open_unmix|hdemucs|demucs|conv_tasnet)`", line)
    ]
    documented = {(peer, size) for sizes, peers in rows for size in sizes for peer in peers}
    composed = yaml.safe_load(params.compose(["peers=all"], ROOT / "conf"))["peers"]
    found = {(peer, size) for peer, recipe in composed.items() for size in recipe["network"]}
    assert documented == found
    trained = set(yaml.safe_load(params.compose([], ROOT / "conf"))["pretrain"]) | {"network"}
    assert all(set(recipe) == trained for recipe in composed.values())


def test_every_direct_dependency_has_its_reason():
    content = tomllib.loads(read("pyproject.toml"))
    project = content["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["pipeline"]]
    listed += content["dependency-groups"]["dev"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in listed} - {"jukesep"}
    table = [
        line.split("|")[1] for line in read("docs/decisions.md").splitlines() if line[:1] == "|"
    ]
    explained = set(re.findall(r"[\w-]+", " ".join(table)))
    assert names <= explained


def test_the_readme_shows_the_committed_scores(tmp_path):
    """Those of the commit: after `dvc repro` on another processor, the folder has others."""
    names = ("README.md", "params.yaml", "metrics", "docs/systems")
    archive = subprocess.run(["git", "archive", "HEAD", *names], cwd=ROOT, stdout=PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as committed:
        committed.extractall(tmp_path, filter="data")
    values = yaml.safe_load((tmp_path / "params.yaml").read_text(encoding="utf-8"))
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page == readme.updated(page, values, tmp_path), "run python -m jukesep.report.readme"


def test_the_readme_s_table_has_every_system_with_its_own_scores(tmp_path):
    values = {"scale": "demo", "stems": jukesep.STEMS, "inits": ["pretrained", "scratch"]}
    files = ("sdr/pretrained_late", "sdr/scratch_late", "sdr/refined", "sdr/static_equaliser",
             "baselines/scaled_mixture", "baselines/ideal_ratio_mask")  # fmt: skip
    for number, file in enumerate(files):
        path = tmp_path / f"metrics/{file}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = {stem: number + 0.1 * place for place, stem in enumerate(jukesep.STEMS)}
        path.write_text(json.dumps({"step": 9, **scores, "total": number + 0.555}))
    kept = tmp_path / "docs/systems/scores.csv"
    kept.parent.mkdir(parents=True)
    lines = [
        "system,budget,seed,songs,drums,bass,other,vocals,total,commit",
        "pretrained_late,1.0,0,seen,9,9,9,9,9,a",
        "open_unmix_wiener,1.0,0,seen,4.0,4.1,4.2,4.3,4.4,a",
        "open_unmix,1.0,0,held_out,9,9,9,9,9,a",
        "open_unmix,4.0,0,seen,9,9,9,9,9,a",
        "open_unmix,1.0,1,seen,9,9,9,9,9,a",
        "hdemucs,1.0,0,seen,3.0,3.1,3.2,3.3,3.456,a",
    ]
    kept.write_text("\n".join(lines) + "\n")
    text = f"# Title\n\n{readme.HEADER}\n|---|\n| old |\n\nMore.\n"
    new = readme.updated(text, values, tmp_path)
    assert new.startswith("# Title\n\n| system |")
    assert new.endswith("|\n\nMore.\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in new.splitlines()[4:]]
    assert [row[0] for row in rows[:8]] == [
        "jukesep, pretrained, late checkpoint",
        "jukesep, scratch, late checkpoint",
        "jukesep, pretrained, refined by Wiener filters",
        "HDemucs",
        "Open-Unmix, Wiener filter",
        "static equaliser",
        "mixture / 4",
        "ideal ratio mask (knows the stems)",
    ]
    assert rows[3][1:] == ["the demo's", "3.00", "3.10", "3.20", "3.30", "3.46"]
    assert rows[8][1] == "MUSDB18-HQ"
    assert rows[8][-1] == "4.188"
    assert rows[9:] == [[""], ["More."]]
    for broken in ("", text + text):
        with pytest.raises(UserError, match="one is expected"):
            readme.updated(broken, values, tmp_path)
    for missing, remedy in ((path, "dvc repro"), (kept, "studies.systems")):
        missing.unlink()
        with pytest.raises(UserError, match=rf"{missing.name}: no such file; run `.*{remedy}`"):
            readme.updated(text, values, tmp_path)


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 220
