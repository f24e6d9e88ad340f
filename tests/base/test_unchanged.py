"""Facts about files hold as long as the files are what they were."""

import hashlib
import os
import shutil

import pytest

from jukesep.base.unchanged import Known, code, digest, file_digest, marks


@pytest.fixture
def files(tmp_path):
    found = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in found:
        path.write_bytes(b"samples of " + path.name.encode())
    return found


def _remember(tmp_path, files, given=None):
    known = Known(tmp_path / "known.json")
    known.put("song", files, {"peak": 0.1}, given)
    known.save()
    return Known(tmp_path / "known.json")


def test_what_has_not_changed_is_known(tmp_path, files):
    known = _remember(tmp_path, files, {"rate": 44100})
    assert known.get("song", files, {"rate": 44100}) == {"peak": 0.1}
    assert known.files == set(files)


def _rewritten(path):
    path.write_bytes(path.read_bytes())


def _appended(path):
    before = path.stat()
    with path.open("ab") as file:
        file.write(b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(path):
    """By a copy of the same size and time."""
    shutil.copy2(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


@pytest.mark.parametrize("change", [_rewritten, _appended, _replaced, lambda path: path.unlink()])
def test_a_file_that_has_changed_is_not(tmp_path, files, change):
    known = _remember(tmp_path, files)
    change(files[1])
    assert known.get("song", files) is None


def test_other_files_names_and_givens_are_not_known(tmp_path, files):
    known = _remember(tmp_path, files, [1])
    assert known.get("another", files, [1]) is None
    assert known.get("song", files[:1], [1]) is None
    assert known.get("song", files, [2]) is None


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, files):
    known, before = Known(tmp_path / "known.json"), marks(files)
    _rewritten(files[0])
    known.put("song", files, {}, before=before)
    known.put("missing", [tmp_path / "c.wav"], {})
    known.save()
    assert (tmp_path / "known.json").read_text() == "{}\n"


def test_what_is_not_asked_for_is_forgotten_but_after_a_failure(tmp_path, files):
    known = _remember(tmp_path, files)
    known.save(all_asked=False)
    again = Known(tmp_path / "known.json")
    assert again.get("song", files) == {"peak": 0.1}
    Known(tmp_path / "known.json").save()
    assert Known(tmp_path / "known.json").get("song", files) is None


def test_what_is_not_asked_for_is_forgotten_with_its_files(tmp_path, files):
    _remember(tmp_path, files)
    files[0].unlink()
    Known(tmp_path / "known.json").save(all_asked=False)
    assert (tmp_path / "known.json").read_text() == "{}\n"


@pytest.mark.parametrize("text", ["", "{", "[1]", '"song"', '{"song": 3}', '{"song": {}}'])
def test_a_damaged_record_knows_nothing(tmp_path, files, text):
    (tmp_path / "known.json").write_text(text)
    assert Known(tmp_path / "known.json").get("song", files) is None


def test_code_is_told_apart_by_what_it_is(files):
    before = code(*files)
    assert before == code(*reversed(files))
    _rewritten(files[0])
    assert before == code(*files)
    files[0].write_text("other")
    assert before != code(*files)


@pytest.mark.parametrize("size", [0, 1, 200_007])
def test_the_digest_of_a_file_is_that_of_its_content(tmp_path, size):
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert file_digest(tmp_path / "file") == digest(content) == expected
    assert digest(content[start : start + 1000] for start in range(0, size, 1000)) == expected
