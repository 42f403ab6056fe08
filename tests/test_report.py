"""Runs over seeds: what counts, what is grouped, and what the tables say."""

import json
import math

import pytest
from scipy import stats

from latentrobust.errors import InputError
from latentrobust.report import report
from latentrobust.reporting import aggregate


def run(folder, name, metrics, *overrides, seed=0, done=True):
    place = folder / name
    place.mkdir(parents=True)
    configuration = {"seed": seed, "data": {"split_seed": 0}, "overrides": list(overrides)}
    (place / "config.yaml").write_text(json.dumps(configuration))  # which is YAML too
    (place / "metrics.json").write_text(json.dumps(metrics))
    if done:
        (place / "DONE").touch()


def test_intervals_are_students_over_seeds(tmp_path):
    values = [0.70, 0.74, 0.75]
    for number, value in enumerate(values):
        run(tmp_path, f"a{number}", {"accuracy/clean": value}, "experiment=a", f"seed={number}", seed=number)
        run(tmp_path, f"b{number}", {"accuracy/clean": 0.5, "loss/clean": 1.0}, "experiment=b", seed=number)
    summary = report(tmp_path)
    assert summary.keys == ["experiment"]
    found = summary.rows[0][1]["accuracy/clean"]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.text(True) == f"73.00 ± {100 * (high - low) / 2:.2f}"
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| a | 73.00 ± 6.57 | 3 |" in text
    assert "loss/clean" not in text


def test_unfinished_repeated_and_diverged_runs(tmp_path):
    run(tmp_path, "1", {"bits_per_dim": 3.0}, "experiment=a", seed=1)
    run(tmp_path, "2", {"bits_per_dim": 4.0}, "experiment=a", seed=1)
    run(tmp_path, "3", {"bits_per_dim": None}, "experiment=a", seed=2)
    run(tmp_path, "4", {"bits_per_dim": 9.0}, "experiment=a", seed=3, done=False)
    summary = report(tmp_path)
    found = summary.rows[0][1]["bits_per_dim"]
    assert (found.mean, found.count) == (4.0, 1)
    assert math.isnan(found.half)
    assert sorted(path.name for path in summary.left_out) == ["1", "4"]
    assert found.text(False) == "4"


def test_numbers_order_rows_and_make_the_axis(tmp_path):
    for size in (600, 2400, 50000):
        for method in ("x", "y"):
            run(
                tmp_path,
                f"{method}{size}",
                {"accuracy/clean": size / 1e5},
                f"experiment={method}",
                f"data.train_size={size}",
            )
    summary = report(tmp_path, out=tmp_path / "elsewhere")
    assert [choices["data.train_size"] for choices, _ in summary.rows[:3]] == ["600", "2400", "50000"]
    assert (tmp_path / "elsewhere" / "accuracy_clean.png").is_file()
    assert aggregate.axis_key(summary, None) == "data.train_size"
    with pytest.raises(InputError, match="--x experiment"):
        aggregate.axis_key(summary, "experiment")


def test_latex_is_escaped(tmp_path):
    run(tmp_path, "1", {"accuracy/clean": 0.5}, "+x={a:1}", "y=a^2")
    run(tmp_path, "2", {"accuracy/clean": 0.5}, "+x=50%_$", "y=~b")
    report(tmp_path)
    text = (tmp_path / "report" / "report.tex").read_text()
    for expected in (r"\{a:1\}", r"a\textasciicircum 2", r"50\%\_\$", r"\textasciitilde b", r"accuracy/clean \%"):
        assert expected in text


def test_nothing_to_report(tmp_path):
    for folder, message in ((tmp_path / "no", "no folder"), (tmp_path, "no finished run")):
        with pytest.raises(InputError, match=message):
            report(folder)
    run(tmp_path, "1", {"accuracy/clean": 0.5})
    with pytest.raises(InputError, match=r"no run has a metric robust/\*; there are accuracy/clean"):
        report(tmp_path, ["robust/*"])
    (tmp_path / "1" / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        report(tmp_path)
