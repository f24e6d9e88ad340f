"""How many processes train, as the environment asks for it."""

import pytest

from jukesep.base.errors import UserError
from jukesep.resume import launch


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """The numbers of processes that would have been started; none is."""
    numbers = []
    monkeypatch.setattr(launch, "_run", numbers.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv(launch.PROCESSES, raising=False)
    return numbers


@pytest.mark.parametrize("value", ["", "0", "-1", "2.0", "two", "1e1", " 2", "²"])
def test_what_is_no_number_of_processes_is_named(monkeypatch, started, value):
    monkeypatch.setenv("JUKESEP_NPROC", value)
    with pytest.raises(UserError) as error:
        launch.launch(4, "stage1")
    assert str(error.value) == (
        f"JUKESEP_NPROC is {value!r}. Set it to a number of processes, 1 or more."
    )
    assert started == []


@pytest.mark.parametrize("value", [None, "1"])
def test_unasked_a_training_runs_in_the_process_that_there_is(monkeypatch, started, capsys, value):
    if value:
        monkeypatch.setenv("JUKESEP_NPROC", value)
    assert not launch.launch(4, "stage1")
    assert started == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("batch", "asked"), [(4, 2), (4, 4), (6, 3), (8, 1)])
def test_a_batch_that_splits_evenly_is_split(monkeypatch, started, capsys, batch, asked):
    monkeypatch.setenv("JUKESEP_NPROC", str(asked))
    assert launch.launch(batch, "stage1") == (asked > 1)
    assert started == [asked] * (asked > 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("batch", "asked", "number"), [(4, 3, 2), (4, 8, 4), (6, 4, 3), (6, 5, 3), (12, 5, 4)]
)
def test_one_that_does_not_is_shared_by_fewer(monkeypatch, started, capsys, batch, asked, number):
    monkeypatch.setenv("JUKESEP_NPROC", str(asked))
    assert launch.launch(batch, "pretrain")
    assert started == [number]
    assert capsys.readouterr().err == (
        f"pretrain.batch={batch} cannot be shared by {asked} processes (JUKESEP_NPROC): "
        f"using {number}.\n"
    )


@pytest.mark.parametrize(("batch", "asked"), [(1, 2), (3, 2), (5, 4)])
def test_one_that_splits_in_no_way_is_trained_on_here(monkeypatch, started, capsys, batch, asked):
    monkeypatch.setenv("JUKESEP_NPROC", str(asked))
    assert not launch.launch(batch, "stage2")
    assert started == []
    assert f"stage2.batch={batch} cannot be shared by {asked} processes" in capsys.readouterr().err


def test_a_process_that_torchrun_has_started_starts_no_others(monkeypatch, started):
    monkeypatch.setenv("JUKESEP_NPROC", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert not launch.launch(4, "stage1")
    assert started == []
