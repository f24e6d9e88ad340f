"""docs/variants.md: how its variants train, and the page from scores."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import SMALL, prepare_songs

from jukesep.base import params, paths
from jukesep.model import jukebox
from jukesep.pipeline import train as pipeline
from jukesep.songs.manifest import STEMS
from jukesep.training.conditioning import Conditioned
from jukesep.training.tasks import LatentMatching
from studies import experiments, variants, variants_page
from studies.variants import Masking, Matching, Varied, masked

ROOT = Path(__file__).parents[2]
CONDITIONED = ["stage2.input_scale=8", "stage2.standardise=true"]
TINY = params.compose([*SMALL, *CONDITIONED, "inits=[pretrained]"], ROOT / "conf")


@pytest.fixture
def bench(entered, monkeypatch):
    """An entered project with songs of noise and untrained models of stage 1; seed 0 of it."""
    splits = {"train": 1, "valid": 1, "test": 1}
    prepare_songs(entered, lambda split, stem: 0.1 if stem == "bass" else 0.05, splits)
    Path("params.yaml").write_text(TINY)
    p = params.load()
    for seed, stem in enumerate(STEMS):
        torch.manual_seed(seed)
        model = pipeline._random_vqvae(p.model_copy(update={"seed": seed}))
        model.codebook.restore(torch.randn(16, p.model.latent_dim), 1.0)
        jukebox.save_jukebox(model, p.stage1_checkpoint(stem, "pretrained"), 2)
    monkeypatch.setenv(paths.VARIABLE, "trainings")
    monkeypatch.setattr(experiments, "commit", lambda: "abc1234")
    monkeypatch.setattr(experiments, "unchanged", lambda commit: commit == "abc1234")
    return variants.Bench(p, 0)


def test_the_shared_loss_is_the_mean_of_the_separate_ones(bench):
    model = bench.encoder(STEMS)
    batch = torch.stack([bench.segments(STEMS)[index] for index in (0, 1)])
    shared = Matching(model, bench.models(STEMS))
    found = float(shared.loss(shared.prepare(batch), 0)[0].detach())
    separate = []
    for place, (stem, system) in enumerate(variants.separators(bench, model).items(), 1):
        task = LatentMatching(
            Conditioned(system.encoder), bench.stage1[stem], "mse", bench.p.losses, {}
        )
        prepared = task.prepare(batch[:, [0, place]])
        separate.append(float(task.loss(prepared, 0)[0].detach()))
    assert found == pytest.approx(sum(separate) / len(STEMS), rel=1e-5)
    assert len(set(separate)) == len(STEMS)


def test_separate_encoders_are_those_of_stage_2(bench):
    (stem, *_), step = STEMS, bench.p.stage2.steps
    paths.weights("pretrained").mkdir(parents=True)  # part of what determines a result
    pipeline.stage2(bench.p, stem, "pretrained")
    path = paths.checkpoint("stage2", stem, "pretrained", step)
    expected = jukebox.load_encoder(path, bench.stage1[stem].architecture).state_dict()
    model = bench.encoder([stem])
    bench.train(Matching(model, bench.models([stem])), [stem], step)
    found = variants.separators(bench, model, [stem])[stem].encoder.state_dict()
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_varied_segments_change_pitch_and_level_within_their_bounds(bench):
    varied = bench.segments(["bass"], kind=partial(Varied, mixtures="remixed"))
    stem = bench.segments(["bass"])
    levels = [
        20 * torch.log10(varied[index][1].std() / stem[index][1].std()) for index in range(40)
    ]
    bound = variants_page.LEVELS + 1.5  # interpolation takes some of noise's highest frequencies
    assert max(map(abs, levels)) < bound
    assert min(levels) < -1 < 1 < max(levels)
    assert torch.equal(varied[3], varied[3])


def test_masked_estimates_sum_to_the_mixture():
    torch.manual_seed(0)
    mixture, estimates = torch.randn(2, 1, 4096), torch.randn(2, 4, 4096)
    for some in (estimates, estimates * torch.tensor([1.0, 0, 1, 0])[:, None], 0 * estimates):
        assert torch.allclose(masked(mixture, some, 512).sum(1), mixture[:, 0], atol=1e-5)
    assert torch.allclose(masked(mixture, 0 * estimates, 512), mixture / 4, atol=1e-5)
    ideal = masked(estimates.sum(1, keepdim=True), estimates, 512)
    assert torch.nn.functional.mse_loss(ideal, estimates) < 0.6 * estimates.var()


def test_the_loss_through_the_decoders_trains_every_head_and_no_decoder(bench):
    model = bench.encoder(STEMS)
    masking = Masking(model, bench.models(STEMS), 512)
    batch = masking.prepare(bench.segments(STEMS)[0][None])
    masking.loss(batch, 0)[0].backward()
    *_, last = (layer for layer in model.modules() if isinstance(layer, torch.nn.Conv1d))
    assert all(head.abs().sum() > 0 for head in last.weight.grad.chunk(len(STEMS)))
    decoders = (one.decoder for one in bench.stage1.values())
    assert all(p.grad is None for decoder in decoders for p in decoder.parameters())


def test_the_command_resumes_and_writes_the_page(bench, monkeypatch, capsys):
    ran = []
    ways = {
        name: lambda bench, name=name, way=way: ran.append((name, bench.seed)) or way(bench)
        for name, way in variants.WAYS.items()
    }
    monkeypatch.setattr(variants, "WAYS", ways)
    variants.main(["--seeds", "0"])
    assert ran == [(name, 0) for name in variants_page.VARIANTS]
    assert capsys.readouterr().out == "docs/variants.md\n"
    kept, page = variants_page.load(), variants_page.PAGE.read_text()
    assert {(s.split, s.songs, s.commit) for s in kept} == {("test", "seen", "abc1234")}
    assert [score.variant for score in kept] == list(variants_page.VARIANTS)
    assert len({tuple(score.sdrs) for score in kept}) > 3  # two steps of remixed round as separate
    text = variants_page.SCORES.read_text().splitlines()
    variants_page.SCORES.write_text("\n".join(text[:-1]) + "\n")
    variants.main(["--seeds", "0"])  # only what was lost
    assert ran[len(kept) :] == [(variants_page.VARIANTS[-1], 0)]
    assert [score.sdrs for score in variants_page.load()] == [score.sdrs for score in kept]
    variants_page.PAGE.write_text("")
    variants.main(["--write"])
    assert len(ran) == len(kept) + 1
    assert variants_page.PAGE.read_text().splitlines()[-8:] == page.splitlines()[-8:]


def _score(variant, seed, songs, sdr, seconds, init="pretrained"):
    sdrs = sdr, sdr + 0.1, sdr + 0.5, sdr + 0.6
    about = seed, "test", songs, *sdrs, seconds, "a processor", "c1"
    return variants_page.Score(variant, init, *about)


def test_the_page_compares_seed_by_seed():
    gains = {"separate": (0.0, 0.0), "shared": (-0.2, -0.1), "end to end": (-0.1, 0.3)}
    scores = [
        _score(name, seed, songs, 2.0 + seed + gain[seed], 100.0 + 10 * gain[seed])
        for name, gain in gains.items()
        for seed in (0, 1)
        for songs in ("seen", "held_out")
    ]
    page = variants_page.page(scores)
    assert "| shared | 0, 1 | 98, 99 | 0.9" in page
    assert "## Test songs of instruments never heard in training" in page
    assert "| **shared** | mean | **2.35** | **2.45** | **2.85** | **2.95** |" in page
    assert page.count("- shared against separate, refined, bypass: worse under every seed") == 2
    assert page.count("- end to end against separate, plain, quantised: no consistent diff") == 2
    assert "of commit c1" in page
    assert page.count("Not run yet") == 2  # from scratch, seen and held-out


def test_the_page_says_what_pretraining_gains():
    gains = {"separate": (0.4, 0.5), "end to end": (-0.1, 0.2)}
    scores = [
        _score(name, seed, songs, 2.0 + (gain[seed] if init == "pretrained" else 0), 100.0, init)
        for init in ("pretrained", "scratch")
        for name, gain in gains.items()
        for seed in (0, 1)
        for songs in ("seen", "held_out")
    ]
    page = variants_page.page(scores)
    assert "Not run yet" not in page
    assert page.count("| separate | 1 | +0.50 | +0.50 | +0.50 | +0.50 |") == 2
    first = "- separate, plain, quantised: pretrained against scratch, better under every seed"
    assert page.count(first) == 2
    assert "- end to end, plain" not in page
    last = "- end to end, refined, bypass: pretrained against scratch, no consistent difference"
    assert page.count(last) == 2
    assert page.count("| **separate** | mean |") == 2  # of pretrained models alone


def test_the_committed_page_is_of_the_kept_scores():
    scores = variants_page.load(ROOT / variants_page.SCORES)
    assert (ROOT / variants_page.PAGE).read_text() == variants_page.page(scores)
