"""Which replicas are drained, kept over a restart."""

import pytest

from gateway.books.drained_file import NAME, DrainedFile


def test_what_is_written_is_read(tmp_path):
    """And nothing before; what was written last counts."""
    file = DrainedFile(tmp_path)
    before = file.read()
    file.write({"a": 4, "b": 64})
    both = file.read()
    file.write({})

    assert (before, both, DrainedFile(tmp_path).read()) == ({}, {"a": 4, "b": 64}, {})
    assert [one.name for one in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"drained": {"a": "x"}}', "\xff", '{"drained": ' + "[" * 5000])
def test_what_makes_no_sense_is_nothing_and_is_told(tmp_path, capsys, text):
    """The gateway starts all the same, and drains nobody."""
    (tmp_path / NAME).write_bytes(text.encode("latin-1"))

    assert DrainedFile(tmp_path).read() == {}
    assert "drained.unreadable" in capsys.readouterr().out


def test_where_nothing_can_be_written_that_is_told(tmp_path, capsys):
    """What was there stays."""
    file = DrainedFile(tmp_path)
    file.write({"a": 4})
    (tmp_path / "drained.new").mkdir()
    file.write({"b": 1})

    assert file.read() == {"a": 4}
    assert "drained.unwritten" in capsys.readouterr().out
