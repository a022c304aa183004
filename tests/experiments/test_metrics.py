import json

from tensorboardX.proto import event_pb2

from experiments.common import metrics


def rows(*steps):
    return [{"epoch": step // 5, "step": step, "loss": step / 10} for step in steps]


def write(folder, given, *, step=0):
    record = metrics.Record(folder, step=step)
    for row in given:
        record.write(row)
    record.close()


def events(folder):
    """The scalars in TensorBoard's files: records of a length, its checksum, the event, its checksum."""
    found = []
    for path in sorted(folder.glob("tensorboard/events.*")):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            found += [(value.tag, event.step, round(value.simple_value, 4)) for value in event.summary.value]
            content = content[16 + size :]
    return found


def test_rows_come_back(tmp_path):
    assert metrics.read(tmp_path) == []
    write(tmp_path, rows(5, 10))
    assert metrics.read(tmp_path) == rows(5, 10)
    assert [json.loads(line) for line in (tmp_path / metrics.FILE).read_text().splitlines()] == rows(5, 10)


def test_tensorboard_has_the_same_figures(tmp_path):
    write(tmp_path, [*rows(5), {"step": 10, "loss": None}])
    assert set(events(tmp_path)) == {("loss", 5, 0.5), ("epoch", 5, 1.0)}


def test_a_resumed_run_writes_later_rows_again(tmp_path):
    write(tmp_path, rows(5, 10, 15))
    write(tmp_path, rows(15), step=10)
    assert metrics.read(tmp_path) == rows(5, 10, 15)
    write(tmp_path, rows(5))
    assert metrics.read(tmp_path) == rows(5)


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    write(tmp_path, rows(5, 10))
    with open(tmp_path / metrics.FILE, "a") as file:
        file.write('{"epoch": 3, "st')
    assert metrics.read(tmp_path) == rows(5, 10)
    write(tmp_path, rows(15), step=10)
    assert metrics.read(tmp_path) == rows(5, 10, 15)


def test_what_is_not_a_number_is_null(tmp_path):
    write(tmp_path, [{"step": 1, "loss": float("nan"), "radius": float("inf")}])
    assert metrics.read(tmp_path) == [{"step": 1, "loss": None, "radius": None}]
