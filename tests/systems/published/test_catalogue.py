"""Published weights: what is refused, and what is downloaded, from a server of the test's own."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from commands import run_jukesep
from web import running, whole

from jukesep.base.errors import UserError
from jukesep.systems.published import catalogue
from jukesep.systems.published.catalogue import PUBLISHED, checked, fetch, refuse
from jukesep.systems.system import NOT_STATED

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        "hdemucs_high_trained.pt",
        "HDEMUCS_HIGH_MUSDB_PLUS",
        "mdx_extra",
        "mdx_extra_q.yaml",
        "e51eebcc-c1b80bdd.th",
        "cfa93e08.safetensors",
    ],
)
def test_weights_trained_on_test_songs_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CONTENT)
    with pytest.raises(UserError, match="was trained on the test songs of MUSDB18"):
        checked(path)
    with pytest.raises(UserError, match="was trained on the test songs of MUSDB18"):
        fetch(name, tmp_path, accepted=True)


def test_and_by_digest():
    plus = "a004b2790d73ffeaa535db458a1a79b539dfdbafbccc31f275d07e632ebd7816"
    with pytest.raises(UserError, match="HDEMUCS_HIGH_MUSDB_PLUS was trained"):
        refuse("mine.pt", plus)
    with pytest.raises(UserError, match="mdx_extra was trained"):
        refuse("mine.th", "c1b80bdd" + "0" * 56)
    refuse("mine.pt", "0" + plus[1:])


@pytest.mark.parametrize("one", PUBLISHED.values(), ids=PUBLISHED)
def test_what_can_be_fetched_is_not_refused(one):
    for file in one.files:
        refuse(file.name, file.sha256 or "")
        assert file.url.startswith("https://")
        assert file.url.endswith(f"/{file.name}")
        named = catalogue.NAMED.search(file.name)
        assert not named or file.sha256.startswith(named[1])


def test_the_addresses_are_those_of_the_packages():
    """As far as the packages hold them; they are read, not imported."""
    from jukesep.base.packages import package_folder

    source = (package_folder("openunmix") / "__init__.py").read_text(encoding="utf-8")
    assert all(f'"{file.url}"' in source for file in PUBLISHED["open-unmix"].files)
    bundles = package_folder("torchaudio") / "pipelines/_source_separation_pipeline.py"
    source = bundles.read_text(encoding="utf-8")
    assert all(f'"models/{file.name}"' in source for file in PUBLISHED["hdemucs"].files)
    listed = (package_folder("demucs") / "remote/files.txt").read_text(encoding="utf-8").split()
    for sha256, name in catalogue.ALSO.items():
        signature = PUBLISHED[name].files[0].name.partition(".")[0]
        assert f"{signature}-{sha256[:8]}.th" in listed


def test_the_sets_that_are_refused_are_those_of_demucs():
    import yaml

    from jukesep.base.packages import package_folder

    remote = package_folder("demucs") / "remote"
    listed = (remote / "files.txt").read_text(encoding="utf-8").split()
    for name in ("mdx_extra", "mdx_extra_q"):
        models = yaml.safe_load((remote / f"{name}.yaml").read_text(encoding="utf-8"))["models"]
        for model in models:
            (file,) = (file for file in listed if file.startswith(model))
            for word in (f"{model}.safetensors", file):
                with pytest.raises(UserError, match=f": {name} was trained"):
                    refuse(word)
            with pytest.raises(UserError, match=f": {name} was trained"):
                refuse("mine", file.removesuffix(".th").partition("-")[2] + "0" * 56)


def test_a_sum_in_the_name_is_compared(tmp_path):
    right, wrong = tmp_path / f"mine-{SHA256[:8]}.pth", tmp_path / "mine-00000000.pth"
    for path in (right, wrong):
        path.write_bytes(CONTENT)
    assert checked(right) == SHA256
    with pytest.raises(UserError, match=rf"sha256 is {SHA256}, but .* has 00000000\.\.\.\. "):
        checked(wrong)


def test_the_sum_of_a_published_name_is_compared(tmp_path):
    (tmp_path / "955717e8.safetensors").write_bytes(CONTENT)
    with pytest.raises(UserError, match=f"sha256 is {SHA256}, but a file of this name has d9fa14"):
        checked(tmp_path / "955717e8.safetensors")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: No such file"):
        checked(tmp_path / "none.pth")


def test_what_is_stated_of_files():
    one = PUBLISHED["open-unmix"]
    sums, names = [f.sha256 for f in one.files], [f.name for f in one.files]
    assert catalogue.about("open-unmix", sums, names) == (one.trained_on, one.licence)
    other = [*sums[1:], SHA256]
    assert catalogue.about("open-unmix", other, names) == (NOT_STATED, NOT_STATED)
    one = PUBLISHED["hdemucs"]
    assert catalogue.about("hdemucs", [SHA256], [one.files[0].name])[0] == one.trained_on
    assert catalogue.about("hdemucs", [SHA256], ["mine.pt"]) == (NOT_STATED, NOT_STATED)
    one = PUBLISHED["htdemucs"]
    assert catalogue.about("htdemucs", list(catalogue.ALSO), ["mine"])[0] == one.trained_on
    assert catalogue.about("hdemucs", list(catalogue.ALSO), ["mine"])[0] == NOT_STATED


def test_an_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"'demucs': no such weights\. Known: open-unmix, hdemucs"):
        fetch("demucs", tmp_path, accepted=True)


# --- downloads --------------------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as site:
        for name, sha256 in (("htdemucs", SHA256), ("hdemucs", None)):
            one = PUBLISHED[name]
            file = replace(one.files[0], url=site.at(f"/{name}", whole(CONTENT)), sha256=sha256)
            monkeypatch.setitem(PUBLISHED, name, replace(one, files=(file,)))
        yield site


def test_nothing_is_downloaded_before_the_licence_is_accepted(site, tmp_path, capsys):
    with pytest.raises(UserError, match="nothing was downloaded"):
        fetch("htdemucs", tmp_path / "weights", accepted=False)
    said = capsys.readouterr().err
    assert "only for scientific purposes" in said
    assert "84 MB" in said
    assert site.requests == []
    assert not (tmp_path / "weights").exists()


def test_a_file_is_downloaded_once(site, tmp_path, capsys):
    for _ in range(2):
        run_jukesep("fetch", "htdemucs", "--accept-licence", "-o", str(tmp_path / "weights"))
        assert capsys.readouterr().out == f"{tmp_path / 'weights/955717e8.safetensors'}\n"
    assert (tmp_path / "weights/955717e8.safetensors").read_bytes() == CONTENT
    assert site.requests == [("/htdemucs", None)]


def test_a_wrong_sum_leaves_nothing(site, tmp_path):
    site.at("/htdemucs", whole(b"something else"))
    with pytest.raises(UserError, match="sha256 is"):
        fetch("htdemucs", tmp_path, accepted=True)
    assert not (tmp_path / "955717e8.safetensors").exists()


def test_a_sum_that_is_not_known_is_shown(site, tmp_path, capsys):
    (path,) = fetch("hdemucs", tmp_path, accepted=True)
    assert path.read_bytes() == CONTENT
    assert f"sha256 is {SHA256}, and cannot be compared" in capsys.readouterr().err


def test_a_file_that_is_already_there_is_checked(site, tmp_path):
    (tmp_path / "955717e8.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="sha256 is"):
        fetch("htdemucs", tmp_path, accepted=True)
    assert site.requests == []


def test_fetch_lists_what_there_is(capsys):
    assert run_jukesep("fetch") == 0
    listed = capsys.readouterr().out
    assert all(f"{name}\n{one.title}: " in listed for name, one in PUBLISHED.items())
    assert run_jukesep("fetch", "mdx_extra_q", "--accept-licence") == 1
    assert "test songs" in capsys.readouterr().err


def test_the_page_says_what_the_catalogue_says():
    from documents import read

    page = read("docs/published.md")
    for name, one in PUBLISHED.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        size = sum(file.megabytes for file in one.files)
        assert row.endswith(f"| {one.title}, {size} MB | {one.trained_on} | {one.licence} |")
