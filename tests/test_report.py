"""Runs over seeds: what counts, what is grouped, and what the tables say."""

import json
import math
import os
import warnings

import pytest
from scipy import stats

from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.report import report
from latentrobust.reporting import aggregate
from latentrobust.reporting.sweep import write_sweep_table


def put(configuration, key, value):
    *path, last = key.split(".")
    for part in path:
        configuration = configuration.setdefault(part, {})
    configuration[last] = value


def run(folder, name, metrics, *overrides, seed=0, done=True, resolved=None):
    place = folder / name
    place.mkdir(parents=True)
    configuration = {"seed": seed, "data": {"split_seed": 0}, "overrides": list(overrides)}
    configuration["paths"] = {"output_dir": str(place), "data_dir": f"/data/{name}"}
    configuration["callbacks"] = {"best": {"dirpath": f"{place}/checkpoints"}}
    configuration["trainer"] = {"default_root_dir": str(place)}
    for override in overrides:  # as a run resolves it
        key, _, value = override.lstrip("+").partition("=")
        if key != "seed":
            put(configuration, "name" if key == "experiment" else key, value)
    for key, value in (resolved or {}).items():
        put(configuration, key, value)
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
    assert (found.mean, found.count, found.nulls) == (4.0, 1, 1)
    assert math.isnan(found.half)
    assert sorted(path.name for path in summary.left_out) == ["1", "4"]
    assert found.text(False) == "4 (1 null)"
    assert "4 (1 null)" in (tmp_path / "report" / "report.md").read_text()


def test_repeats_are_decided_by_time_not_by_name(tmp_path):
    for name, value, age in (("2", 3.0, 0), ("10", 4.0, 100), ("b", 5.0, 50)):
        run(tmp_path, name, {"bits_per_dim": value}, "experiment=a", seed=1)
        os.utime(tmp_path / name / "metrics.json", (1e9 - age, 1e9 - age))
    summary = report(tmp_path)
    assert summary.rows[0][1]["bits_per_dim"].mean == 3.0
    assert sorted(path.name for path in summary.left_out) == ["10", "b"]


def test_runs_are_grouped_by_what_they_resolved_to(tmp_path):
    """Nothing on the command line: two flows by path and three learning rates, as from Python."""
    for seed in range(2):
        for flow in ("one", "two"):
            for rate in (1e-3, 0.01, 0.1):
                run(
                    tmp_path, f"{seed}{flow}{rate}", {"accuracy/clean": rate + len(flow)}, seed=seed,
                    resolved={"paths.flow": flow, "learner.optimizer.lr": rate},
                )  # fmt: skip
    summary = report(tmp_path)
    assert summary.left_out == []
    assert set(summary.keys) == {"paths.flow", "learner.optimizer.lr"}
    assert len(summary.rows) == 6
    assert all(found["accuracy/clean"].count == 2 for _, found in summary.rows)
    assert all(found["accuracy/clean"].half == 0 for _, found in summary.rows)


def test_numbers_compare_as_numbers_however_they_are_written(tmp_path):
    for seed, text in enumerate(("1e-3", "0.001", "0.0010")):
        run(tmp_path, text, {"accuracy/clean": 0.5}, f"learner.optimizer.lr={text}", seed=seed)
    summary = report(tmp_path)
    assert len(summary.rows) == 1
    assert summary.rows[0][1]["accuracy/clean"].count == 3
    assert summary.constant == {"learner.optimizer.lr": "0.001"}


def test_null_metrics_are_shown(tmp_path):
    run(tmp_path, "1", {"bits_per_dim": None}, "experiment=a")
    run(tmp_path, "2", {"bits_per_dim": 2.0, "warnings": ["the model seems to return probabilities"]}, "experiment=b")
    summary = report(tmp_path, ["*"])
    assert summary.metrics == ["bits_per_dim"]
    assert "| a | null | 1 |" in (tmp_path / "report" / "report.md").read_text()


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
    with pytest.warns(RobustnessWarning, match="damaged"), pytest.raises(InputError, match="no finished run"):
        report(tmp_path)


@pytest.mark.parametrize("broken", ["{", "[]", "", "[" * 100_000])
def test_one_damaged_run_is_left_out_and_named(tmp_path, broken):
    for name in "12":
        run(tmp_path, name, {"accuracy/clean": 0.5})
    (tmp_path / "2" / "metrics.json").write_text(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobustnessWarning)
        summary = report(tmp_path)
    assert [interval.mean for _, metrics in summary.rows for interval in metrics.values()][:1] == [0.5]


def test_what_others_wrote_is_not_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    folder = tmp_path / "0"
    run(tmp_path, "0", {"accuracy/clean": 0.5})
    text = "overrides: ['name=${oc.env:SECRET}']\npaths: {output_dir: x, data_dir: y}\nnote: ${oc.env:SECRET}\n"
    (folder / "config.yaml").write_text(text)
    report(tmp_path)
    write_sweep_table(tmp_path)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".csv", ".md", ".tex"))
    assert "hunter2" not in written
    assert "${oc.env:SECRET}" in (tmp_path / "sweep.csv").read_text()
