import pytest

from tests.experiments import tiny_runs


@pytest.mark.slow(reason="writes the profile of a whole run")
def test_a_profile_is_written_for_two_viewers(tiny, tmp_path):
    tiny_runs.train(tmp_path, epochs=2, ramp_epochs=1, lr_milestones=(), profile=4)
    files = [path.name for path in (tmp_path / "profile").rglob("*") if path.is_file()]
    assert any(name.endswith(".xplane.pb") for name in files)  # XProf, TensorBoard
    assert "perfetto_trace.json.gz" in files
