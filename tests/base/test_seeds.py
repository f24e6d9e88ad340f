"""Random numbers depend on the seed, the purpose and the index: on each, and on nothing else."""

import itertools

from jukesep.base import seeds

NAMES = list(itertools.product((0, 1), ("segments/order", "segments/shift"), (0, 1)))


def test_each_of_the_three_makes_other_numbers():
    found = {name: seeds.torch_seed(*name) for name in NAMES}
    assert len(set(found.values())) == len(NAMES) == 8
    # In any order, and whatever was drawn before.
    assert {name: seeds.torch_seed(*name) for name in reversed(NAMES)} == found


def test_the_numbers_are_those_of_every_machine():
    assert seeds.torch_seed(0, "order") == 8960036388167645070
    assert seeds.torch_generator(0, "order").initial_seed() == 8960036388167645070
    assert seeds.numpy_generator(3, "order", 7).integers(1000, size=4).tolist() == [
        630,
        934,
        719,
        393,
    ]
