"""A user's mistake is one line, wherever it is met."""

import pytest

from jukesep.base.errors import reported
from jukesep.base.files import write_text


@pytest.mark.parametrize("below", ["", "deeper/"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, capsys, below):
    (tmp_path / "cache").touch()
    with pytest.raises(SystemExit, match="1"), reported():
        write_text(tmp_path / f"cache/{below}a.json", "{}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'cache'}")
    assert line.endswith("There is a file where a folder should be: move it elsewhere.")
