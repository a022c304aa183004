import pytest

from experiments.common.errors import UserError
from experiments.common.records import Records

SETTINGS = {"radius": 0.1, "step": 3}


def test_lines_are_there_when_the_file_is_opened_again(tmp_path):
    first = Records(tmp_path / "file", SETTINGS)
    first.append({"index": i} for i in range(3))
    first.append([{"index": 3}])
    assert first.rows == [{"index": i} for i in range(4)]
    assert Records(tmp_path / "file", SETTINGS).rows == first.rows


def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path):
    path = tmp_path / "file"
    Records(path, SETTINGS).append({"index": i, "method": "ibp"} for i in range(3))
    text = path.read_bytes()
    for length in range(len(text) + 1):
        path.write_bytes(text[:length])
        records = Records(path, SETTINGS)
        whole = text[:length].count(b"\n")
        assert len(records.rows) == max(0, whole - 1)
        records.append({"index": i, "method": "ibp"} for i in range(len(records.rows), 3))
        assert path.read_bytes() == text


def test_other_settings_are_refused(tmp_path):
    Records(tmp_path / "file", SETTINGS).append([{"index": 0}])
    with pytest.raises(UserError, match="results for other settings: radius=0.1, not 0.2. Move"):
        Records(tmp_path / "file", {**SETTINGS, "radius": 0.2})
    assert Records(tmp_path / "file", SETTINGS).rows == [{"index": 0}]


@pytest.mark.parametrize("damaged", [b"{]\n", b"7\n", b"\xff\xfe\n"])
def test_a_damaged_line_is_named(tmp_path, damaged):
    path = tmp_path / "file"
    Records(path, SETTINGS).append([{"index": 0}])
    path.write_bytes(path.read_bytes() + damaged + b'{"index": 1}\n')
    with pytest.raises(UserError, match="line 3, is damaged: delete the line"):
        Records(path, SETTINGS)
