"""What trains and runs no model does not wait for torch to be imported."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions

import pytest
from sources import ROOT, imports

import jukesep
from jukesep.base.errors import EXTRAS, UserError, not_installed, reported
from jukesep.base.packages import package_folder

TORCH_FREE = (
    "jukesep.audio.decode",
    "jukesep.audio.encode",
    "jukesep.audio.lengths",
    "jukesep.audio.samples",
    "jukesep.base.download",
    "jukesep.base.files",
    "jukesep.base.git",
    "jukesep.base.packages",
    "jukesep.base.params",
    "jukesep.base.paths",
    "jukesep.base.signals",
    "jukesep.base.unchanged",
    "jukesep.pipeline.pretrained",
    "jukesep.report.figures",
    "jukesep.report.listen",
    "jukesep.report.others",
    "jukesep.report.page",
    "jukesep.report.readme",
    "jukesep.report.results",
    "jukesep.report.write",
    "jukesep.resume.beside",
    "jukesep.resume.forkserver",
    "jukesep.resume.identity",
    "jukesep.resume.launch",
    "jukesep.resume.layout",
    "jukesep.resume.results",
    "jukesep.resume.status",
    "jukesep.scoring.batch",
    "jukesep.scoring.comparison",
    "jukesep.scoring.estimates",
    "jukesep.scoring.evaluation",
    "jukesep.scoring.metrics",
    "jukesep.scoring.published",
    "jukesep.scoring.score",
    "jukesep.scoring.store",
    "jukesep.scoring.table",
    "jukesep.separation.files",
    "jukesep.separation.names",
    "jukesep.separation.origins",
    "jukesep.songs.band",
    "jukesep.songs.checks",
    "jukesep.songs.find",
    "jukesep.songs.headers",
    "jukesep.songs.manifest",
    "jukesep.songs.musdb",
    "jukesep.base.parallel",
    "jukesep.songs.prepare",
    "jukesep.systems.equaliser",
    "jukesep.systems.published.catalogue",
    "jukesep.systems.registry",
    "jukesep.systems.system",
    "stages.baselines",
    "stages.listen",
    "stages.prepare",
    "stages.report",
)
CODE = """
import sys
from importlib import import_module

def none_of(after, *names):
    assert not set(names) & set(sys.modules), f'{after} imports one of {names}'

import jukesep
assert set(jukesep.__all__) <= set(dir(jukesep))
none_of('jukesep', 'numpy', 'torch')
from jukesep.cli import app
for words in (['--help'], ['separate', '--help'], ['--version']):
    app(words, standalone_mode=False)
    none_of(words, 'numpy', 'soundfile', 'torch', 'tqdm', 'yaml')  # typer takes pydantic
from jukesep.songs import musdb
musdb.archive_source(), musdb.validation_songs()
none_of('the address of MUSDB18-HQ', 'torch', 'musdb', 'stempeg')
from jukesep.scoring import metrics
metrics.museval_metrics()
none_of("museval's formulas", 'torch', 'museval')
jukesep.sdr, jukesep.sdr_mdx, jukesep.sdr_v4, jukesep.STEMS, jukesep.UserError
none_of('a public name without a model', 'torch')
for name in sys.argv[1:]:
    import_module(name)
    none_of(name, 'torch')
[getattr(jukesep, name) for name in jukesep.__all__]
"""


def test_nothing_is_imported_before_it_is_needed():
    """In a process of its own, one module after the other: the first to import it is named.

    It finds no program, ffmpeg among them.
    """
    command = [sys.executable, "-c", CODE, *TORCH_FREE]
    env = os.environ | {"PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LAYER = """
import sys
import torch
from jukesep.model.vqvae import Architecture, Encoder

Encoder(Architecture(width=4, depth=1))(torch.zeros(1, 1, 64)).sum().backward()
slow = {"scipy.signal", "torch._dynamo", "pandas"} & set(sys.modules)
assert not slow, f"a step of a training imports {slow}"
"""


def test_a_step_does_not_wait_for_what_it_does_not_need():
    done = subprocess.run([sys.executable, "-c", LAYER], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "found"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_threads_of_torch_leave_their_cores_to_others(given, found):
    code = "import jukesep, os, sys; assert os.environ['OMP_WAIT_POLICY'] == sys.argv[1]"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", code, found], cwd=ROOT, env=env | given, check=True)


def test_other_names_are_not_public():
    with pytest.raises(AttributeError, match="'jukesep' has no attribute 'sdr_v5'"):
        jukesep.sdr_v5  # noqa: B018


def test_every_module_that_says_so_is_among_them():
    for path in (ROOT / "jukesep").rglob("*.py"):
        if "does not import torch" in " ".join(path.read_text(encoding="utf-8").split()):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert name.removesuffix(".__init__") in TORCH_FREE


# --- the extras -------------------------------------------------------------------------------


def foreign(path):
    """(package, whether within a function) of each import of another distribution's package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef)
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            package = name.partition(".")[0]
            if package not in sys.stdlib_module_names and package != "jukesep":
                yield package, node in inner


def test_packages_of_an_extra_are_imported_where_they_are_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    always = {canonical(line) for line in project["dependencies"]} | {"triton"}  # torch's own
    extras = {
        name: {canonical(line) for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    extras["pipeline"].add("omegaconf")  # hydra-core's own
    optional = set().union(*extras.values())
    assert not always & optional
    distributions = packages_distributions()
    for path in (ROOT / "jukesep").rglob("*.py"):
        for package, within in foreign(path):
            owners = {canonical(name) for name in distributions.get(package, [package])}
            if not owners & always:
                assert owners & optional, f"{path}: {package} is no dependency"
                assert within, f"{path}: {package} must be imported in a function"
                assert package in EXTRAS, f"jukesep.base.errors.EXTRAS lacks {package}"
    for package, extra in EXTRAS.items():
        assert {canonical(name) for name in distributions[package]} <= extras[extra]


def canonical(line):
    return re.split("[=<>;~!]", line)[0].strip().lower().replace("_", "-")


@pytest.mark.parametrize(
    ("error", "package", "extra"),
    [
        (ModuleNotFoundError("", name="symusic.core"), "symusic", "pipeline"),
        (PackageNotFoundError("pretty-midi"), "pretty_midi", "pipeline"),
        (not_installed("symusic"), "symusic", "pipeline"),
        (ModuleNotFoundError("", name="demucs.htdemucs"), "demucs", "peers"),
        (ModuleNotFoundError("", name="openunmix"), "openunmix", "peers"),
    ],
)
def test_what_an_extra_would_bring_is_named(error, package, extra, capsys):
    with pytest.raises(SystemExit), reported():
        raise error
    assert capsys.readouterr().err == (
        f"error: {package} is not installed. This needs jukesep[{extra}]: "
        f"pip install 'jukesep[{extra}]'\n"
    )


def test_what_no_extra_brings_is_a_traceback():
    with pytest.raises(ModuleNotFoundError, match="nowhere"), reported():
        import nowhere  # noqa: F401


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"nowhere is not installed\. This needs jukesep"):
        package_folder("nowhere")


# --- folders ----------------------------------------------------------------------------------

# From the ground up: a folder imports from itself and from those before it.
FOLDERS = (
    "base",
    "audio",
    "songs",
    "kernels",
    "model",
    "resume",
    "training",
    "separation",
    "peers",
    "systems",
    "scoring",
    "pipeline",
    "report",
    "commands",
    "cli",
    "__main__",
)


def modules():
    for path in sorted((ROOT / "jukesep").rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").parts
        yield path, name[:-1] if name[-1] == "__init__" else name


def test_folders_import_one_way():
    place = {name: number for number, name in enumerate(FOLDERS)}
    wrong = [
        f"{path.relative_to(ROOT)} imports {'.'.join(target)}"
        for path, name in modules()
        if len(name) > 1
        for target in imports(path)
        if len(target) > 1 and place[target[1]] > place[name[1]]
    ]
    assert not wrong


def test_the_kernels_have_one_door():
    """Other folders import `jukesep.kernels`, and its `devices`, but no kernel."""
    doors = {("jukesep", "kernels"), ("jukesep", "kernels", "devices")}
    inside = [
        f"{path.relative_to(ROOT)} imports {'.'.join(target)}"
        for path, name in modules()
        if name[1:2] != ("kernels",)
        for target in imports(path)
        if target[1:2] == ("kernels",) and target not in doors
    ]
    assert not inside


def test_no_module_imports_itself_by_way_of_others():
    needs = {name: {target for target in imports(path)} for path, name in modules()}
    done = set()

    def visit(name, way):
        assert name not in way, f"a circle: {[*map('.'.join, way), '.'.join(name)]}"
        if name not in done:
            for target in sorted(needs.get(name, ())):
                if len(target) > 1:  # jukesep itself imports its public names when they are used
                    visit(target, (*way, name))
            done.add(name)

    for name in needs:
        visit(name, ())


def test_a_folder_has_at_most_ten_modules():
    for folder in (*FOLDERS[:-2], "kernels/cpu", "kernels/gpu", "systems/published"):
        found = [p for p in (ROOT / "jukesep" / folder).glob("*.py") if p.stem != "__init__"]
        assert len(found) <= (12 if folder == "base" else 10), folder
