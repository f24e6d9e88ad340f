"""A user's mistake is one line, wherever it is met."""

import errno
import os
import subprocess
import sys

import pytest

from jukesep.base.errors import REMEDIES, reported
from jukesep.base.files import write_text


@pytest.mark.parametrize("below", ["", "deeper/"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, capsys, below):
    (tmp_path / "cache").touch()
    with pytest.raises(SystemExit, match="1"), reported():
        write_text(tmp_path / f"cache/{below}a.json", "{}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'cache'}")
    assert line.endswith("There is a file where a folder should be: move it elsewhere.")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, capsys):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(SystemExit, match="1"), reported():
        (tmp_path / "a.json").read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'a.json'}: Is a directory. {REMEDIES[errno.EISDIR]}"


def test_a_name_that_is_not_utf8_is_shown(capsys):
    with pytest.raises(SystemExit, match="1"), reported():
        os.fsdecode(b"song\xff.wav").encode()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: song\\udcff.wav: this name is not valid UTF-8.")


def test_a_reader_that_has_gone_is_no_error_to_show():
    program = (
        "from jukesep.base.errors import reported\nwith reported():\n    while True: print('line')"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == b""
    assert run.wait() == 1
