"""How many songs at a time: within the cores and the memory of this process, not of the machine."""

import os
import tracemalloc

import numpy as np
import pytest
import torch
from folders import RATE, write_song

from jukesep.base import parallel
from jukesep.base.params import Separation
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.scoring import evaluation
from jukesep.songs.manifest import Song

GB = 1 << 30
MEMINFO = "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: 33554432 kB\n"  # 32 GiB


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes the files of a Linux machine of 16 cores; their limits are the test's."""
    monkeypatch.setattr(parallel, "ROOT", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12), raising=False)

    def write(groups="", **files):
        given = {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **files.pop("files", {})}
        for name, text in given.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_without_groups_the_machine_s_memory_and_the_cores_allowed(machine):
    machine()
    assert (parallel.cores(), parallel.memory()) == (12, 32 * GB)


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        (  # the second version, in a container that sees its own group as the top
            "0::/\n",
            {
                "cpu.max": "250000 100000\n",
                "memory.max": f"{8 * GB}\n",
                "memory.current": f"{5 * GB}\n",
                "memory.stat": f"anon 1\ninactive_file {GB}\n",
            },
            3,
            4 * GB,
        ),
        (  # the limit is that of a group around its own
            "0::/user/job\n",
            {
                "user/cpu.max": "100000 100000\n",
                "user/memory.max": f"{2 * GB}\n",
                "user/memory.current": f"{GB}\n",
                "user/memory.stat": "inactive_file 0\n",
                "user/job/cpu.max": "max 100000\n",
                "user/job/memory.max": "max\n",
                "user/job/memory.current": f"{GB}\n",
                "user/job/memory.stat": "inactive_file 0\n",
            },
            1,
            GB,
        ),
        (  # the first version, whose groups carry the host's names in a container
            "5:memory:/docker/0a1b\n4:cpu,cpuacct:/docker/0a1b\n1:name=systemd:/\n",
            {
                "memory/memory.limit_in_bytes": f"{3 * GB}\n",
                "memory/memory.usage_in_bytes": f"{2 * GB}\n",
                "memory/memory.stat": f"total_inactive_file {GB // 2}\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
            3 * GB // 2,
        ),
        (  # no limits
            "5:memory:/\n4:cpu:/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": f"{2 * GB}\n",
                "memory/memory.stat": "total_inactive_file 0\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            12,
            32 * GB,
        ),
    ],
    ids=["v2", "v2 outer", "v1", "v1 unlimited"],
)
def test_limits_of_control_groups(machine, groups, files, cores, memory):
    machine(groups, files={f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert (parallel.cores(), parallel.memory()) == (cores, memory)


def test_songs_at_once_fit_into_cores_and_memory(machine):
    machine()
    assert parallel.at_once(100, GB) == 12
    assert parallel.at_once(5, GB) == 5
    assert parallel.at_once(100, 6 * GB) == 4  # a part stays free
    assert parallel.at_once(100, 900 * GB) == 1
    assert parallel.at_once(0, GB) == 1


def test_this_machine_s_limits_are_found():
    assert 1 <= parallel.cores() <= os.cpu_count()
    assert parallel.memory() is None or parallel.memory() > 1 << 20


@pytest.mark.parametrize(("free", "most"), [(None, 3), (1 << 50, 3), (1, 1)])
def test_songs_are_scored_as_memory_allows(tmp_path, monkeypatch, free, most):
    songs, running, seen = [], [], []
    for number in range(3):
        folder = tmp_path / str(number)
        write_song(folder, samples=3000, seed=number)
        songs.append(Song(str(number), "test", "test", folder, 3000))
    score = evaluation.score_separation

    def scoring(*given, **named):
        running.append(1)
        seen.append(len(running))
        rows = score(*given, **named)
        running.pop()
        return rows

    monkeypatch.setattr(evaluation, "score_separation", scoring)
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    monkeypatch.setattr(parallel, "memory", lambda: free)
    monkeypatch.setattr(evaluation, "ThreadPoolExecutor", pools := _Pools())
    torch.manual_seed(0)
    model = VQVAE(Architecture(width=4, depth=1, latent_dim=4, codes=8)).eval()
    separation = Separation(chunk=1024, chunking="exact", bottleneck="quantise")
    rows = evaluation.score_models(songs, "bass", "", model, {1: model}, RATE, separation)
    assert pools.sizes == [most]
    assert max(seen) <= most
    assert np.isfinite([row.value for row in rows if row.metric == "sdr"]).all()


class _Pools:
    """The pools that were made, by their number of threads."""

    def __init__(self):
        self.sizes = []

    def __call__(self, size):
        from concurrent.futures import ThreadPoolExecutor

        self.sizes.append(size)
        return ThreadPoolExecutor(size)


def test_the_memory_of_a_song_grows_with_what_takes_it():
    model = VQVAE(Architecture(width=4, depth=1, latent_dim=4, codes=8))
    separation = Separation(chunk=1024, chunking="exact", bottleneck="quantise")
    short = evaluation.memory(100_000, 2, model, separation)
    # 100 bytes for a sample of a channel, whatever the chunk.
    more = evaluation.memory(200_000, 2, model, separation)
    assert more - short == pytest.approx(20e6)
    wide = separation.model_copy(update={"chunk": 50_000})
    assert evaluation.memory(100_000, 2, model, wide) > short
    assert evaluation.memory(100_000, 2, model, separation, museval=True) > short + 100e6


def test_the_memory_of_a_song_is_what_was_measured(tmp_path):
    """By numpy, which holds the song and computes its scores."""
    samples = 400_000
    write_song(tmp_path, samples=samples)
    song = Song("song", "test", "test", tmp_path, samples)
    torch.manual_seed(0)
    model = VQVAE(Architecture(width=4, depth=1, latent_dim=4, codes=8)).eval()
    separation = Separation(chunk=1024, chunking="hard", bottleneck="quantise")
    mixture, references = evaluation._read(song)
    given = mixture.nbytes * (1 + len(references))
    tracemalloc.start()
    evaluation.score_separation(
        song, mixture, references, "bass", "", model, {1: model}, RATE, separation
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 < (peak + given) / (100 * 2 * samples) < 1
