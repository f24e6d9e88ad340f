"""docs/reproduction.md: all that it names exists, and what it says of options and limits is so."""

import ast
import re
from functools import cache

import pytest
import torch
import yaml
from documents import ROOT, made_by_the_pipeline
from settings import flat

from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.model.codebook import Codebook
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.scoring.metrics import METRICS
from jukesep.scoring.published import PAPER
from jukesep.scoring.published import RERUN as RERUN_ROWS
from jukesep.songs.manifest import STEMS

PAGE = (ROOT / "docs/reproduction.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _rows(*headings):
    """Rows of the tables below some headings: column -> cell."""
    for heading in headings:
        _, section = re.split(rf"^##+ {re.escape(heading)}\n", PAGE, maxsplit=1, flags=re.MULTILINE)
        section = re.split(r"^##+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
        for table in re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE):
            header, _, *lines = (
                [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
            )
            yield from (dict(zip(header, line, strict=True)) for line in lines)


def _names(text):
    """Everything in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


READINGS = [
    (key, *(yaml.safe_load(_names(row[column])[0]) for column in ("default", "other")))
    for row in _rows("Two readings of the recipe")
    for key in _names(row["parameter"])
]
# Words in backticks that are no file, parameter or command: metrics, scales, values of parameters.
WORDS = {*METRICS, *(path.stem for path in ROOT.glob("conf/scale/*.yaml")), "small", "paper1"}
WORDS |= {
    _names(row[column])[0]
    for row in _rows("Two readings of the recipe")
    for column in ("default", "other")
}
NAMES = {line for block in FENCED.findall(PAGE) for line in block.splitlines()}
NAMES |= set(_names(FENCED.sub("", PAGE))) - WORDS
# test_commands.py has the commands of all pages.
NAMES = {name for name in NAMES if not name.startswith("uv run ")}


@cache
def _compose(*overrides):
    """The parameters at scale=paper, checked: key -> value."""
    content = yaml.safe_load(params.compose(["scale=paper", *overrides], ROOT / "conf"))
    params.Params.model_validate(content)
    return dict(flat(content))


@cache
def _definitions(file):
    """A module's functions, classes and methods (Class.method) by name."""

    def definitions(body, prefix=""):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{node.name}.")

    return dict(definitions(ast.parse((ROOT / file).read_text(encoding="utf-8")).body))


def _exists(name):
    if "::" in name:
        file, _, definition = name.partition("::")
        return (ROOT / file).is_file() and definition in _definitions(file)
    if "=" in name:
        # Real songs lie somewhere: their data= needs a root.
        return bool(_compose(name, *(["data.root=/songs"] if name.startswith("data=") else [])))
    if "/" in name or name.endswith(".yaml"):
        return (ROOT / name).exists() or name.split("/")[0] in {"runs", *made_by_the_pipeline()}
    return name in _compose()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_the_page_names_exists(name):
    try:
        assert _exists(name)
    except UserError as error:
        pytest.fail(f"{name}: {error}")


def test_every_row_has_a_check():
    rows = list(
        _rows(
            "Architecture",
            "Data",
            "Training",
            "What the text does not say and the code decides",
            "The experiments",
            "Two readings of the recipe",
            "Known faults of the published code",
        )
    )
    assert len(rows) > 60
    for row in rows:
        checks = _names(row["checked by"])
        assert checks, row
        for check in checks:
            assert re.match(r"tests/(?:\w+/)*test_\w+\.py::test_|uv run ", check), row


@pytest.mark.parametrize(("key", "default", "other"), READINGS)
def test_both_readings_are_one_override_away(key, default, other):
    try:
        assert _compose()[key] == default
        assert _compose(f"{key}={other}")[key] == other
    except (KeyError, UserError) as error:
        pytest.fail(f"{key}: {error}")


FIGURE_2, RERUN = (
    [row for row in _rows("Table 1 and Figure 2 beside ours") if column in row]
    for column in ("step", "")
)


def test_the_tables_of_published_numbers_are_those_that_the_commands_print():
    printed = {row.system.split()[-1]: row.values for row in PAPER if row.source == "Figure 2"}
    assert {row.pop("step"): row for row in FIGURE_2} == {
        step: {stem: values[stem] for stem in STEMS} for step, values in printed.items()
    }
    for average, row in zip(("mean", "median"), RERUN[2:], strict=True):
        (values,) = [
            r.values for r in RERUN_ROWS if r.system.endswith(f"147,456 samples, {average}")
        ]
        assert row == {"": f"{average}, dB"} | {stem: values[stem] for stem in STEMS}


@pytest.mark.parametrize("row", list(_rows("Golden numbers")), ids=lambda row: row["what"])
def test_the_limits_of_the_golden_numbers_are_those_of_their_tests(row):
    file, _, name = _names(row["test"])[0].partition("::")
    function = _definitions(file)[name]
    if row["limit"].endswith("the same"):
        text = ast.unparse(function)
        assert "assert_array_equal" in text or "assert stats.revived ==" in text
        return
    # Limits that depend on the size of the model stand beside it, in SIZES.
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    (sizes,) = (node for node in body if ast.unparse(node).startswith("SIZES = "))
    limits = {
        constant.value
        for node in (*ast.walk(function), *ast.walk(sizes))
        if isinstance(node, ast.keyword) and node.arg in ("rtol", "atol", "later")
        for constant in ast.walk(node.value)
        if isinstance(constant, ast.Constant)
    }
    assert float(re.match(r"\de-\d", row["limit"])[0]) in limits


@pytest.mark.parametrize("start", [torch.zeros(8, 3), torch.arange(24.0).view(8, 3)])
def test_a_decay_of_one_holds_the_codebook_still(start):
    codebook = Codebook(8, 3, decay=1.0)
    codebook.restore(start, usage=24.0)
    latents = torch.randn(2, 3, 100, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        codes, _ = codebook.quantise(latents)
        assert codebook.update(latents, codes).revived == 0
    assert torch.allclose(codebook.k, start)


def test_a_codebook_held_at_zero_leaves_the_decoder_deaf():
    """Whatever the audio, the output is the same, and away from its ends it repeats each hop."""
    torch.manual_seed(0)
    vqvae = VQVAE(Architecture(width=4, depth=2, downs=(2,), latent_dim=3, codes=16))
    vqvae.codebook.restore(torch.zeros(16, 3), usage=24.0)
    with torch.no_grad():
        one, other = vqvae(torch.randn(2, 1, 400))
    assert torch.equal(one, other)
    middle = one[0, 100:300]
    assert torch.allclose(middle[4:], middle[:-4])
