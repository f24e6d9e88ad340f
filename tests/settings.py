"""The parameters, for tests that go through all of them."""


def flat(section, prefix=""):
    """Name, dots in it, and value of each parameter."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
