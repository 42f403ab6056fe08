import json

import pytest

from latentrobust.benchmark import main


def test_data_benchmark_prints_and_writes_both_rates(tmp_path, capsys):
    main(["data", "--seconds", "0.1", "--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["loop"] == "data"
    assert row["shape"] == [128, 1, 42, 42]
    assert row["samples_per_second"] > row["plain_samples_per_second"] > 0
    assert row["ratio"] == pytest.approx(row["samples_per_second"] / row["plain_samples_per_second"], abs=0.01)
    assert set(row) >= {"dtype", "device", "peak_memory_mb"}
    assert "data" in capsys.readouterr().out


def test_unknown_loops_are_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["nonsense"])
    assert stopped.value.code == 2
    assert "nonsense" in capsys.readouterr().err
