"""params.yaml and conf/ cannot drift apart, and a setting that does not fit is named."""

import shutil
from pathlib import Path

import pytest
import yaml

from jukesep.base import params
from jukesep.base.errors import UserError

ROOT = Path(__file__).parents[2]


def test_params_yaml_is_what_conf_composes_to():
    assert (ROOT / "params.yaml").read_text() == params.compose([], ROOT / "conf")


@pytest.mark.parametrize("scale", ["tiny", "demo", "paper"])
@pytest.mark.parametrize("stem", ["all", "other"])
def test_every_scale_and_stem_composes_to_valid_parameters(tmp_path, scale, stem):
    path = tmp_path / "params.yaml"
    path.write_text(params.compose([f"scale={scale}", f"stem={stem}"], ROOT / "conf"))
    loaded = params.load(path)
    assert loaded.scale == scale
    assert loaded.stem == stem
    assert len(loaded.stems) == (4 if stem == "all" else 1)


def test_paper_scale_is_the_papers_recipe(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(params.compose(["scale=paper"], ROOT / "conf"))
    p = params.load(path)
    assert (p.model.sample_rate, p.model.width, p.model.depth) == (44100, 64, 8)
    assert (p.model.codes, p.model.latent_dim) == (2048, 64)
    assert (p.model.downs, p.model.dilation_growth) == ((3,), 3)
    assert p.stage2.checkpoints == (20000, 80000)
    for recipe in (p.stage1, p.stage2):
        assert (recipe.steps, recipe.batch, recipe.segment) == (80000, 4, 393216)
        assert (recipe.learning_rate, recipe.warmup, recipe.final_rate) == (3e-4, 100, 1.0)
        assert (recipe.clip, recipe.weight_ema) == (1.0, 0.9995)
    assert (p.codebook.decay, p.codebook.revival_threshold) == (0.99, 1.0)
    assert (p.losses.linf, p.losses.multispectral, p.losses.commit) == (0.02, 1.0, 0.02)


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_the_pretraining_corpus_is_larger_than_the_training_corpus(scale):
    band = yaml.safe_load(params.compose([f"scale={scale}"], ROOT / "conf"))["band"]
    assert band["pretrain"] > band["train"] + band["valid"]


def _changed(tmp_path, change):
    content = yaml.safe_load(params.compose([], ROOT / "conf"))
    change(content)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: p["stage1"].update(stepz=3), "stage1.stepz"),
        (lambda p: p["stage1"].update(steps=0), "stage1.steps"),
        (lambda p: p["stage1"].update(segment=8190), "stage1.segment"),
        (lambda p: p["stage2"].update(checkpoints=[600, 150]), "checkpoints"),
        (lambda p: p.update(stems=["drums", "drums"]), "stems"),
        (lambda p: p.update(stems=["choir"]), "stems"),
        (lambda p: p.pop("seed"), "seed"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path, change, named):
    with pytest.raises(UserError, match=named):
        params.load(_changed(tmp_path, change))


@pytest.mark.parametrize(
    ("overrides", "source", "depends_on"),
    [
        ([], "pretrain", "data/prepared"),
        (["weights=jukebox"], "jukebox", "jukesep/pipeline/pretrained.py"),
        (["scale=paper"], "jukebox", "jukesep/pipeline/pretrained.py"),
        (["scale=paper", "weights=pretrain"], "pretrain", "data/prepared"),
        (["scale=paper", "weights=file", "weights.file=/a/b.pth"], "file", "/a/b.pth"),
    ],
)
def test_weights_depend_on_what_they_come_from(tmp_path, overrides, source, depends_on):
    path = tmp_path / "params.yaml"
    path.write_text(params.compose(overrides, ROOT / "conf"))
    weights = params.load(path).weights
    assert (weights.source, weights.depends_on) == (source, depends_on)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["weights=file"], "-S weights.file=/absolute/path"),
        (["weights.source=file"], "-S weights=file -S weights.file=/absolute/path"),
        (
            ["weights.source=file", "weights.file=/a/b.pth"],
            "depends_on is data/prepared.*weights=file",
        ),
        (["weights=file", "weights.file=b.pth"], "must be an absolute path, found 'b.pth'"),
        (["band.soundfonts=[a.sf2]"], "must be absolute paths, found 'a.sf2'"),
        (["scale=paper", "weights.source=pretrain"], "Set both with -S weights=pretrain"),
    ],
)
def test_paths_and_sources_that_do_not_fit_are_refused(tmp_path, overrides, said):
    path = tmp_path / "params.yaml"
    path.write_text(params.compose(overrides, ROOT / "conf"))
    with pytest.raises(UserError, match=said):
        params.load(path)


def test_all_faults_are_reported_at_once(tmp_path):
    def change(p):
        p["stage1"]["steps"] = -1
        p["model"]["width"] = "wide"

    with pytest.raises(UserError, match=r"stage1\.steps") as caught:
        params.load(_changed(tmp_path, change))
    assert "model.width" in str(caught.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        params.load(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"broken\.yaml"):
        params.load(tmp_path / "broken.yaml")


def test_an_unknown_choice_lists_the_known_ones():
    with pytest.raises(UserError, match="vocals"):
        params.compose(["stem=vocal"], ROOT / "conf")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"stem: [drums", "expected ',' or ']'"),
        (b"seed 0\nstem: all\n", "mapping values are not allowed"),
        (b"seed: 0\nseed: 1\n", "duplicate key seed"),
        (b"seed: \xff\n", "can't decode byte 0xff"),
    ],
)
def test_a_slip_in_conf_is_named_and_nothing_is_written(tmp_path, content, said):
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    (conf / "config.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        params.compose(["scale=tiny"], conf)  # the tests keep what they compose, by overrides
    assert said in str(error.value)
    assert str(conf) in str(error.value)


@pytest.mark.parametrize("override", ["stage1.step=5", "foo=1", "scale=tni", "stem=", "peers=null"])
def test_an_override_that_is_not_possible_is_named_with_a_remedy_that_works(override):
    with pytest.raises(UserError) as error:
        params.compose([override], ROOT / "conf")
    said = str(error.value)
    assert "docs/parameters.md lists all parameters" in said
    assert "To append" not in said
    assert "search path" not in said
    assert len(said) < 600


def test_a_file_of_parameters_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: \xff")
    with pytest.raises(UserError, match=r"params.yaml: not YAML .*Run `jukesep compose` again"):
        params.load(path)
