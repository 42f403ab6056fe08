"""Runs over seeds: what counts, what is grouped, and what the tables say."""

import csv
import gc
import io
import itertools
import json
import math
import os
import re
import warnings

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.report import main, report
from latentrobust.reporting import aggregate, comparable, comparison, finished, metric_names, tables
from latentrobust.reporting.comparison import among, compare
from latentrobust.reporting.sweep import write_sweep_table
from latentrobust.reporting.terminal import print_summary


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


def test_equal_numbers_have_no_spread():
    found = aggregate.Interval.of([0.1, 0.1, 0.1])
    assert found.half == 0
    assert metric_names.is_share("model/coverage/radius")
    for name in ("tolerance", "groups", "pairs"):
        assert not metric_names.is_share(f"coverage/{name}")


@pytest.mark.parametrize("model", ["", "a/", "robust/", "smoothed/"])
def test_shares_are_told_by_their_own_names_not_by_the_model_s(model):
    for name in ("accuracy/clean", "robust/p50", "robust/pgd/eps=1", "smoothed/robust/p50", "certified/full"):
        assert metric_names.is_share(f"{model}{name}")
    for name in ("loss/clean", "smoothed/sigma", "certified/draws", "fit_seconds", "fit_accuracy", "steps"):
        assert not metric_names.is_share(f"{model}{name}")


def test_values_that_differ_are_never_printed_alike(tmp_path):
    for place, rate in enumerate((1.0, 1.00001, 0.123456)):
        run(tmp_path, f"{place}", {"accuracy/clean": 0.5}, f"learner.lr={rate}", resolved={"learner.lr": rate})
    assert [choices["learner.lr"] for choices, _ in report(tmp_path).rows] == ["0.123456", "1", "1.00001"]


def test_equal_values_of_different_keys_are_different_lines_and_rows(tmp_path):
    for key in ("p", "q"):
        for x in (1, 2):
            run(tmp_path, f"{key}{x}", {"accuracy/clean": 0.5}, f"x={x}", f"{key}=2")
    (axis,) = tables.figure(report(tmp_path), "x", "accuracy/clean").axes
    assert axis.get_legend_handles_labels()[1] == ["p=2", "q=2"]


def test_a_value_does_not_break_the_table_of_markdown(tmp_path):
    for value in ("a|b", "c\nd"):
        run(tmp_path, value[0], {"accuracy/clean": 0.5}, f"p={value}")
    lines = tables.markdown(report(tmp_path)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [r"| a\|b", "| c d"]


def sweep(folder, spread=0.02, examples=40):
    """Three methods × four seeds: b is better than a on every seed, c is like a; each with its test examples."""
    generator = np.random.default_rng(2)
    luck = generator.normal(0, spread, 4)  # that a seed brings to every method
    for name, level in (("a", 0.70), ("b", 0.76), ("c", 0.70)):
        for seed in range(4):
            value = level + luck[seed] + generator.normal(0, 0.004)
            run(folder, f"{name}{seed}", {"accuracy/clean": value}, f"experiment={name}", seed=seed)
            right = np.arange(examples) < level * examples
            rows = "".join(f"{number},rts,{float(flag)}\n" for number, flag in enumerate(right))
            (folder / f"{name}{seed}" / "per_example.csv").write_text("index,kind,clean\n" + rows)


def test_rows_are_compared_over_seeds_and_over_examples(tmp_path):
    sweep(tmp_path)
    summary = report(tmp_path)
    found = {(part.first, part.second, part.over): part for part in compare(summary)}
    assert len(found) == 6
    for pair, differs in (((0, 1), True), ((0, 2), False), ((1, 2), True)):
        assert found[*pair, "seeds"].is_sure is differs
        assert found[*pair, "seeds"].pairs == 4
    # What a seed brings to both methods cancels: unpaired, nothing could be told.
    values = [[member.metrics["accuracy/clean"] for member in summary.members[place]] for place in (0, 1)]
    paired = stats.ttest_rel(*values)
    assert found[0, 1, "seeds"].p == pytest.approx(paired.pvalue)
    assert (found[0, 1, "seeds"].low, found[0, 1, "seeds"].high) == pytest.approx(paired.confidence_interval(0.95))
    by_hand = multipletests([found[(*pair, "seeds")].p
                             for pair in ((0, 1), (0, 2), (1, 2))], method="holm")[1]  # fmt: skip
    assert [found[*pair, "seeds"].adjusted for pair in ((0, 1), (0, 2), (1, 2))] == pytest.approx(list(by_hand))
    examples = found[0, 1, "examples"]
    assert examples.pairs == 40
    assert examples.difference == pytest.approx(-3 / 40)  # 28 and 31 are right
    assert examples.low <= examples.difference <= examples.high
    assert found[0, 2, "examples"].p == 1.0
    rows = list(csv.DictReader((tmp_path / "report" / "comparisons.csv").open()))
    assert len(rows) == 6
    assert float(rows[0]["difference"]) == pytest.approx(found[0, 1, "seeds"].difference)


@pytest.mark.parametrize(("only_a", "only_b", "examples"), [(9, 2, 40), (1, 0, 7), (30, 18, 400), (0, 6, 9)])
def test_shares_are_compared_as_by_mcnemar(tmp_path, only_a, only_b, examples):
    """For 0s and 1s, sign flips of the differences are McNemar's exact test, which statsmodels has."""
    both = np.ones(examples)
    for name, wrong in (("a", slice(0, only_b)), ("b", slice(only_b, only_b + only_a))):
        right = both.copy()
        right[wrong] = 0
        run(tmp_path, name, {"accuracy/clean": float(right.mean())}, f"experiment={name}")
        rows = "".join(f"{number},x,{value}\n" for number, value in enumerate(right))
        (tmp_path / name / "per_example.csv").write_text("index,kind,clean\n" + rows)
    (part,) = compare(report(tmp_path))
    exact = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
    # Exact where there are few; else from 4,999 flips.
    assert part.p == pytest.approx(exact, abs=1e-9 if 2 ** (only_a + only_b) < 5000 and examples < 13 else 0.02)
    assert part.difference == pytest.approx((only_a - only_b) / examples)
    # The bootstrap's interval of a difference of shares, beside the normal one.
    share = (only_a + only_b) / examples - part.difference**2
    if only_a + only_b > 20:
        half = 1.96 * math.sqrt(share / examples)
        assert (part.low, part.high) == pytest.approx((part.difference - half, part.difference + half), abs=0.01)


def test_two_seeds_or_examples_with_equal_differences_prove_nothing(tmp_path):
    for name, values in (("a", (0.93, 0.90)), ("b", (0.91, 0.88))):
        for seed, value in enumerate(values):
            run(tmp_path, f"{name}{seed}", {"accuracy/clean": value}, f"experiment={name}", seed=seed)
            rows = f"0,x,{int(name == 'a')}\n1,x,{int(name == 'a')}\n2,x,nan\n3,fog,1\n3,rain,0\n"
            (tmp_path / f"{name}{seed}" / "per_example.csv").write_text("index,kind,clean\n" + rows)
    found = {part.over: part for part in compare(report(tmp_path))}
    assert found["seeds"].p == 1.0
    assert found["examples"].pairs == 3  # the third has no number, the kinds of the last are one image
    assert found["examples"].p >= 0.25
    assert not any(part.is_sure for part in found.values())


def test_the_best_of_many_rows_counts_as_all_that_could_have_been_best(tmp_path):
    generator = np.random.default_rng(4)
    for place in range(7):
        for seed in range(3):
            value = 0.5 + 0.1 * (place == 6) + generator.normal(0, 0.01)
            run(tmp_path, f"{place}-{seed}", {"accuracy/clean": value}, f"experiment=m{place}", seed=seed)
    found = compare(report(tmp_path))
    assert len(found) == 6
    smallest = min(part.p for part in found)
    assert min(part.adjusted for part in found) == pytest.approx(min(21 * smallest, 1))


def test_other_test_examples_are_not_paired(tmp_path):
    sweep(tmp_path)
    for seed in range(4):
        config = json.loads((tmp_path / f"b{seed}" / "config.yaml").read_text())
        put(config, "data.test_size", 40)
        (tmp_path / f"b{seed}" / "config.yaml").write_text(json.dumps(config))
    kinds = {(part.first, part.second, part.over) for part in compare(report(tmp_path))}
    assert (0, 2, "examples") in kinds
    assert (0, 1, "examples") not in kinds


def test_splits_by_other_seeds_have_other_test_examples(tmp_path):
    sweep(tmp_path)
    for name, seed in [*(("b", seed) for seed in range(4)), ("c", 3)]:
        config = json.loads((tmp_path / f"{name}{seed}" / "config.yaml").read_text())
        put(config, "data.split_seed", 1)
        (tmp_path / f"{name}{seed}" / "config.yaml").write_text(json.dumps(config))
    assert {part.over for part in compare(report(tmp_path))} == {"seeds"}


def test_rows_are_paired_by_the_seeds_that_both_have(tmp_path):
    """A measurement with a seed of its own, as the grid of corruptions has one, is still of the same runs."""
    for seed in range(4):
        run(tmp_path, f"a{seed}", {"accuracy/clean": 0.5 + 0.01 * seed}, "experiment=a", seed=seed)
        run(
            tmp_path, f"b{seed}", {"accuracy/clean": 0.9 + 0.011 * seed}, "experiment=b", seed=seed,
            resolved={"evaluation.grid.seed": 7},
        )  # fmt: skip
    (found,) = compare(report(tmp_path))
    assert (found.over, found.pairs) == ("seeds", 4)
    assert found.is_sure


def test_measurements_of_one_model_are_one_draw(tmp_path):
    """However often it is measured, nothing is known of the way it was trained."""
    for name, values in (("a", (0.50, 0.52, 0.54)), ("b", (0.80, 0.81, 0.85))):
        run(tmp_path, f"trained/{name}", {"accuracy/clean": 0.9}, f"experiment={name}", seed=3)
        for seed, value in enumerate(values):
            run(
                tmp_path, f"measured/{name}{seed}", {"robust/p50": value}, f"run={name}", seed=seed,
                resolved={"evaluation.seed": seed, "run": str(tmp_path / "trained" / name), "job_type": "evaluate"},
            )  # fmt: skip
    summary = report(tmp_path / "measured")
    (one, other) = (found["robust/p50"] for _, found in summary.rows)
    assert (one.count, one.mean, math.isnan(one.half)) == (1, pytest.approx(0.52), True)
    assert other.mean == pytest.approx(0.82)
    assert not [part for part in compare(summary) if part.over == "seeds"]
    assert "| 1 (3 measurements) |" in (tmp_path / "measured" / "report" / "report.md").read_text()
    (axis,) = tables.figure(
        aggregate.Summary(["x"], {}, ["robust/p50"], [({"x": "1"}, {"robust/p50": one})], []), "x", "robust/p50"
    ).axes
    (bars,) = axis.collections
    assert not bars.get_segments()[0].size  # of a single draw there is no interval


def test_what_differs_in_the_seed_of_its_training_is_another_draw_also_measured_again(tmp_path):
    for seed in range(3):
        run(tmp_path, f"trained/{seed}", {"accuracy/clean": 0.9}, "experiment=a", seed=seed)
        for again in range(2):
            run(
                tmp_path, f"measured/{seed}-{again}", {"robust/p50": 0.5 + 0.1 * seed + 0.02 * again}, seed=again,
                resolved={"run": str(tmp_path / "trained" / str(seed)), "job_type": "evaluate"},
            )  # fmt: skip
    ((_, found),) = report(tmp_path / "measured").rows
    assert (found["robust/p50"].count, found["robust/p50"].mean) == (3, pytest.approx(0.61))
    assert found["robust/p50"].half == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    assert "| 3 (6 measurements) |" in (tmp_path / "measured" / "report" / "report.md").read_text()


def page(folder, **options):
    report(folder, **options)
    return (folder / "report" / "sweep.html").read_text()


def test_a_row_that_leads_by_other_seeds_is_not_called_ahead(tmp_path):
    for seed in range(8):
        value = 0.60 if seed < 4 else 0.90
        run(tmp_path, f"a{seed}", {"accuracy/clean": value + 0.0001 * seed}, "experiment=a", seed=seed)
    for seed in range(4):
        run(tmp_path, f"b{seed}", {"accuracy/clean": 0.65 + 0.0002 * seed}, "experiment=b", seed=seed)
    run(tmp_path, "c", {"accuracy/clean": 0.1}, "experiment=c", seed=0)
    text = page(tmp_path)
    assert "experiment=a has the most, 75.0 %; ahead of 0 of 2 others by more than chance over seeds (1 of them" in text
    assert "on the seeds that both have it is behind experiment=b" in text


def test_warnings_of_runs_reach_the_page_and_the_table(tmp_path, capsys):
    for name in "ab":
        for seed in range(2):
            run(tmp_path, f"{name}{seed}", {"accuracy/clean": 0.5}, f"experiment={name}", seed=seed)
    metrics = {"accuracy/clean": 0.5, "warnings": ["Collapsed: attacks find <nothing>"]}
    (tmp_path / "b1" / "metrics.json").write_text(json.dumps(metrics))
    main([str(tmp_path)])
    line = "experiment=b (1 of 2 runs): Collapsed: attacks find <nothing>"
    assert f"warning: {line}" in capsys.readouterr().out
    assert f"- {line}" in (tmp_path / "report" / "report.md").read_text()
    assert "Collapsed: attacks find &lt;nothing&gt;" in (tmp_path / "report" / "sweep.html").read_text()


def test_robustness_over_other_sets_is_not_ranked(tmp_path):
    """Within a set that holds nothing every model is robust."""
    for seed in range(3):
        for beta, radius, left in ((1, 6.3, 0.35), (1000, 0.02, 0.95)):
            metrics = {"radius": radius + 0.1 * seed, "robust/p50": left + 0.01 * seed, "accuracy/clean": 0.9}
            run(tmp_path, f"{beta}-{seed}", metrics, f"learner.beta={beta}", seed=seed)
    text = page(tmp_path)
    assert "robust/p50: not compared, since rows were measured over sets of different radii" in text
    assert "robust/p50: beta=" not in text
    assert {part.metric for part in compare(report(tmp_path))} == {"accuracy/clean", "radius"}


def test_robustness_over_sets_that_seeds_tell_apart_alone_is_compared(tmp_path):
    for seed in range(3):
        for name in "ab":
            metrics = {"radius": 1.0 + seed, "robust/p50": 0.5 + 0.01 * seed + 0.2 * (name == "b")}
            run(tmp_path, f"{name}{seed}", metrics, f"experiment={name}", seed=seed)
    assert "robust/p50: experiment=b has the most" in page(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "metric", "are_compared"),
    [
        # Rows without a seed in common, whose radii are far apart; and some that lie among each other.
        ({"seed": 0, "radius": 6.3}, {"seed": 10, "radius": 0.02}, "robust/p50", False),
        ({"seed": 0, "radius": 6.3, "apart": 0.5}, {"seed": 10, "radius": 6.5}, "robust/p50", True),
        # One learned its set, the other took one.
        ({"radius": 6.3, "learner.seed": 0}, {"radius": 0.02}, "robust/p50", False),
        ({"radius": 6.3, "learner.seed": 0}, {"radius": 6.3}, "robust/p50", True),
        # A radius that is given says nothing of the set; what it was learned with does.
        ({"radius": 2.0, "learner.beta": 1}, {"radius": 2.0, "learner.beta": 9}, "robust/p50", False),
        # Norms of one set are the same whatever its radius is; that itself is not.
        ({"radius": 0.1, "perturbation_set.norm": "linf", "perturbation_set.radius": 0.1},
         {"radius": 0.2, "perturbation_set.norm": "linf", "perturbation_set.radius": 0.2}, "robust/eps=0.02", True),
        ({"radius": 0.1, "perturbation_set.norm": "linf", "perturbation_set.radius": 0.1},
         {"radius": 0.2, "perturbation_set.norm": "linf", "perturbation_set.radius": 0.2}, "robust/full", False),
        ({"radius": 0.1, "perturbation_set.norm": "linf", "perturbation_set.radius": 0.1},
         {"radius": 0.2, "perturbation_set.norm": "l2", "perturbation_set.radius": 0.2}, "robust/eps=0.02", False),
    ],
)  # fmt: skip
def test_what_is_measured_over_sets_is_compared_where_they_are_the_same(tmp_path, first, second, metric, are_compared):
    for name, row in (("a", first), ("b", second)):
        for seed in range(3):
            metrics = {"radius": row["radius"] + row.get("apart", 0) * seed, metric: 0.5 + 0.1 * (name == "b")}
            resolved = {key: value for key, value in row.items() if "." in key}
            resolved |= {"learner.seed": seed} if "learner.seed" in row else {}
            run(
                tmp_path, f"{name}{seed}", metrics, f"experiment={name}", seed=row.get("seed", 0) + seed,
                resolved=resolved,
            )  # fmt: skip
    assert (f"{metric}: experiment=b has the most" in page(tmp_path, metrics=[metric])) == are_compared


def test_a_row_of_which_runs_have_diverged_says_so_where_it_leads(tmp_path):
    for seed in range(5):
        value = None if seed > 1 else 0.85 + 0.01 * seed
        run(tmp_path, f"b{seed}", {"accuracy/clean": value}, "experiment=b", seed=seed)
        metrics = {"accuracy/clean": 0.8, **({"accuracy/perturbed": 0.7} if seed else {})}
        run(tmp_path, f"a{seed}", metrics, "experiment=a", seed=seed)
    assert "experiment=b has the most, 85.5 %, of 2 of 5 runs (3 diverged)" in page(tmp_path)
    (row,) = [row for row in csv.DictReader((tmp_path / "report" / "report.csv").open()) if row["experiment"] == "b"]
    assert (row["accuracy/clean/runs"], row["accuracy/clean/null"]) == ("2", "3")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| a | 80.00 ± 0.00 | 70.00 ± 0.00 (1 missing) | 5 |" in text
    assert "| b | 85.50 ± 6.35 (3 null) |  | 5 |" in text


def test_patches_of_photographs_that_another_seed_cuts_are_other_examples(tmp_path):
    sweep(tmp_path)
    for seed in range(4):
        config = json.loads((tmp_path / f"b{seed}" / "config.yaml").read_text())
        put(config, "data.source.seed", 1)
        (tmp_path / f"b{seed}" / "config.yaml").write_text(json.dumps(config))
    kinds = {(part.first, part.second, part.over) for part in compare(report(tmp_path))}
    assert (0, 1, "examples") not in kinds
    assert (0, 2, "examples") in kinds


def test_intervals_of_shares_over_examples_hold_where_few_differ():
    """As in a table of 50 images of which one is lost: a bootstrap's interval has no width in a third of such."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        differences = -(generator.random(50) < 0.02).astype(float)
        values = [
            {str(place): float(value) for place, value in enumerate(part)} for part in (1 + differences, np.ones(50))
        ]
        part = comparison._over_examples("accuracy/clean", (0, 1), values)
        held += part.low <= -0.02 <= part.high
    assert held >= 370  # of 400, at 95 % each
    alike = [{str(place): 1.0 for place in range(50)}] * 2
    same = comparison._over_examples("accuracy/clean", (0, 1), alike)
    assert -0.1 < same.low < 0 < same.high < 0.1
    assert math.isnan(comparison._over_examples("quality/pgd_ae", (0, 1), alike).low)


def test_examples_of_a_group_are_flipped_together(tmp_path):
    """Ten objects of twenty photographs each: two models that differ by chance on objects are not called different."""
    generator = np.random.default_rng(5)
    sure = 0
    for _ in range(40):
        luck = np.repeat(generator.integers(0, 2, (2, 10)), 20, axis=1)  # a model is right on all photographs, or none
        for name, right in zip("ab", luck, strict=True):
            place = tmp_path / name
            if not place.exists():
                run(tmp_path, name, {"accuracy/clean": 0.5}, f"experiment={name}")
            rows = "".join(f"{number},x,{value},{number // 20}\n" for number, value in enumerate(right))
            (place / "per_example.csv").write_text("index,kind,clean,group\n" + rows)
        summary = aggregate.summarise(finished.find_runs(tmp_path)[0], ["accuracy/clean"])
        (part,) = [part for part in compare(summary) if part.over == "examples"]
        assert part.pairs == 10
        assert part.difference == pytest.approx((luck[0] - luck[1]).mean())
        sure += part.p < 0.05
    assert sure <= 5


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_run_of_before_there_were_groups_does_not_hide_them(tmp_path, lacking):
    for name, right in (("a", [1, 0] * 10), ("b", [1] * 20)):
        run(tmp_path, name, {"accuracy/clean": 0.5}, f"experiment={name}")
        rows = [f"{number},x,{value},{number // 2}" for number, value in enumerate(right)]
        if name == lacking:
            rows = [row.rpartition(",")[0] for row in rows]
        heads = "index,kind,clean" + ("" if name == lacking else ",group")
        (tmp_path / name / "per_example.csv").write_text("\n".join([heads, *rows]) + "\n")
    (part,) = [part for part in compare(report(tmp_path)) if part.over == "examples"]
    assert part.pairs == 10


def test_intervals_of_shares_end_where_shares_do(tmp_path):
    for name, right in (("a", 1), ("b", 0)):
        run(tmp_path, name, {"accuracy/clean": float(right)}, f"experiment={name}")
        rows = "".join(f"{number},x,{right}\n" for number in range(20))
        (tmp_path / name / "per_example.csv").write_text("index,kind,clean\n" + rows)
    (part,) = [part for part in compare(report(tmp_path)) if part.over == "examples"]
    assert 0.5 < part.low < 1
    assert part.high == 1


def test_a_measurement_without_a_number_is_not_hidden_by_another_of_the_same_model(tmp_path):
    for seed in range(2):
        run(tmp_path / "t", str(seed), {"accuracy/clean": 0.9}, "experiment=a", seed=seed)
        for number, value in enumerate((0.5, None)):
            resolved = {"run": str(tmp_path / "t" / str(seed)), "job_type": "evaluate"}
            run(tmp_path / "m", f"{seed}-{number}", {"robust/p50": value}, seed=number, resolved=resolved)
    ((_, found),) = report(tmp_path / "m").rows
    assert found["robust/p50"].text(percent=True) == "50.00 ± 0.00 (2 null)"


def test_all_reasons_why_runs_have_no_number_are_said(tmp_path):
    for seed in range(6):
        own = {"accuracy/perturbed": 0.1} if seed > 4 else {"accuracy/clean": None if seed > 1 else 0.9}
        run(tmp_path, f"a{seed}", own, "experiment=a", seed=seed)
        run(tmp_path, f"b{seed}", {"accuracy/clean": 0.5}, "experiment=b", seed=seed)
    assert "of 2 of 6 runs (3 diverged, 1 without it)" in page(tmp_path)


def test_warnings_are_listed_in_one_order(tmp_path):
    said = [f"number {number}" for number in range(20)]
    for name in "ab":
        run(tmp_path, name, {"accuracy/clean": 0.5, "warnings": said}, f"experiment={name}")
    report(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    assert sorted(said, key=lambda line: text.index(f"{line}\n")) == said


def test_only_what_pgd_measured_is_called_so(tmp_path):
    names = ("robust/p50", "m/robust/p50", "smoothed/robust/p50", "robust/accuracy/clean")
    run(
        tmp_path, "a", dict.fromkeys(names, 0.5), "experiment=a",
        resolved={"evaluation.robust.attacks.pgd._target_": "latentrobust.robustness.attacks.PGD"},
    )  # fmt: skip
    ((_, found),) = report(tmp_path, list(names)).rows
    assert {name for name in names if found[name].remark} == {"robust/p50", "m/robust/p50"}


def test_fit_accuracy_is_better_high():
    assert metric_names.is_better_high("fit_accuracy")
    assert metric_names.is_better_high("adversarial/fit_accuracy")
    assert not metric_names.is_better_high("fit_loss")


def test_methods_that_are_alike_are_seldom_called_different(tmp_path, monkeypatch):
    """Holm keeps the chance of any such call, over all comparisons of a table, below 5 %."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # statsmodels' Holm collects garbage, a quarter of a second each
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        members = []
        for _ in range(4):
            values = generator.normal(0.7, 0.02, 5)
            members.append([finished.Finished(tmp_path, {}, {"accuracy/clean": value}, trained={"seed": seed})
                            for seed, value in enumerate(values)])  # fmt: skip
        rows = [({"row": str(place)}, {"accuracy/clean": aggregate.Interval.of([run.metrics["accuracy/clean"] for run in
                 group])}) for place, group in enumerate(members)]  # fmt: skip
        summary = aggregate.Summary(["row"], {}, ["accuracy/clean"], rows, [], members)
        wrong += any(part.is_sure for part in compare(summary))
    assert wrong <= 19  # of 200; the chance of more, at 5 % each, is below 1 in 200


def test_robust_columns_are_the_worst_over_attacks(tmp_path):
    sweep(tmp_path, examples=4)
    for name in "abc":
        for seed in range(4):
            place = tmp_path / f"{name}{seed}"
            metrics = {"m/robust/eps=1": 0.25}
            (place / "metrics.json").write_text(json.dumps(metrics))
            (place / "per_example.csv").write_text(
                "index,kind,m/robust/pgd/eps=1,m/robust/apgd/eps=1,m/robust/apgd/eps=2\n"
                f"0,a,1,1,0\n1,a,{int(name == 'b')},1,0\n2,a,0,{int(name == 'b')},0\n3,a,,,\n"
            )
    found = {(part.first, part.second, part.over): part for part in compare(report(tmp_path, ["m/robust/eps=1"]))}
    assert found[0, 1, "examples"].pairs == 3  # the fourth was not attacked
    assert found[0, 1, "examples"].difference == pytest.approx(-1 / 3)


def test_named_radii_and_certificates_are_compared_over_examples(tmp_path):
    """By the radius that measures the same; of a certificate, by whether it is right and reaches so far."""
    sweep(tmp_path, examples=4)
    for name in "abc":
        for seed in range(4):
            place, better = tmp_path / f"{name}{seed}", int(name == "b")
            metrics = {"robust/p50": 0.5, "robust/eps=1": 0.5, "robust/eps=2": 0.25, "certified/eps=1": 0.5}
            (place / "per_example.csv").write_text(
                "index,kind,robust/pgd/eps=1,robust/pgd/eps=2,certified/prediction,certified/label,certified/radius\n"
                f"0,a,1,0,3,3,2\n1,a,{better},1,3,3,{0.5 + better}\n2,a,0,1,3,{2 + better},1.5\n3,a,,,,,\n"
            )
            (place / "metrics.json").write_text(json.dumps({**metrics, "certified/p25": 0.5, "smoothed/clean": 0.5}))
    for metric in ("robust/p50", "certified/p25", "certified/eps=1", "smoothed/clean"):
        found = {(part.first, part.second, part.over): part for part in compare(report(tmp_path, [metric]))}
        assert found[0, 1, "examples"].pairs == 3
        expected = {"robust/p50": -1 / 3, "smoothed/clean": -1 / 3}.get(metric, -2 / 3)
        assert found[0, 1, "examples"].difference == pytest.approx(expected), metric


def test_certificates_of_maps_are_compared_over_images(tmp_path):
    """Shares of an image's pixels lie in columns by statement and radius; an image without a pixel counts nowhere."""
    for name, better in (("a", 0.0), ("b", 0.25)):
        metrics = {"m/smoothed/clean": 0.5, "m/certified/p25": 0.4, "m/certified/eps=1": 0.4}
        metrics |= {"m/certified_image/p25": 0.3, "m/certified_image/eps=1": 0.3}
        run(tmp_path, name, metrics, f"experiment={name}")
        (tmp_path / name / "per_example.csv").write_text(
            "index,kind,m/certified/right,m/certified/certified/eps=1,m/certified/certified_image/eps=1\n"
            f"0,a,{0.5 + better},{0.25 + better},0.25\n1,a,0.5,0.5,{0.25 + better}\n2,a,nan,nan,nan\n"
        )
    for metric in ("m/smoothed/clean", "m/certified/p25", "m/certified_image/p25", "m/certified/eps=1"):
        (found,) = [part for part in compare(report(tmp_path, [metric])) if part.over == "examples"]
        assert found.pairs == 2, metric
        assert found.difference == pytest.approx(-0.125), metric


@pytest.mark.parametrize(
    ("metric", "best"),
    [("miou/clean", 6), ("accuracy_known/clean", 6), ("quality/log_likelihood", 6), ("certified/p50", 6),
     ("quality/pgd_ae", 0), ("smoothed/abstained", 0), ("loss/clean", 0)],
)  # fmt: skip
def test_of_many_rows_the_best_is_compared_with_the_others(tmp_path, metric, best):
    for place in range(7):
        for seed in range(2):
            run(tmp_path, f"{place}-{seed}", {metric: 0.1 * place + 0.01 * seed}, f"experiment=m{place}", seed=seed)
    assert {part.first for part in compare(report(tmp_path, [metric]))} == {best}


def test_a_large_difference_over_examples_is_more_than_chance_in_a_table_of_any_length(tmp_path):
    """Flips that are drawn tell no p below .0004, of which Holm over 20 rows would make .076."""
    generator = np.random.default_rng(0)
    luck = generator.normal(0, 0.1, 24)
    errors = luck + generator.normal(0, 0.1, (20, 24))
    errors[6] += 1
    for place, own in enumerate(errors):
        run(tmp_path, f"m{place}", {"quality/pgd_ae": float(own.mean())}, f"experiment=m{place}")
        rows = "".join(f"{number},x,{value}\n" for number, value in enumerate(own))
        (tmp_path / f"m{place}" / "per_example.csv").write_text("index,kind,pgd_ae\n" + rows)
    found = [part for part in compare(report(tmp_path, ["quality/pgd_ae"])) if part.over == "examples"]
    assert len(found) == 19
    assert [part.is_sure for part in found] == [part.second == 6 for part in found]
    for part in found:
        differences = errors[part.first] - errors[part.second]
        assert part.difference == pytest.approx(differences.mean())
        # A bound on the share of all 2²⁴ flips lies no lower than that, to which the normal tail comes near.
        assert part.p >= 0.8 * 2 * stats.norm.sf(abs(differences.sum()) / np.linalg.norm(differences))


def test_radii_that_measure_the_same_are_compared_over_examples(tmp_path):
    for name in "ab":
        metrics = {"robust/p50": 0.5, "robust/eps=1": 0.5, "robust/eps=2": 0.5, "robust/pgd/eps=1": 0.5}
        run(tmp_path, name, {**metrics, "certified/p25": 0.5, "certified/eps=1": 0.5, "certified/eps=1.5": 0.5},
            f"experiment={name}")  # fmt: skip
        (tmp_path / name / "per_example.csv").write_text(
            "index,kind,robust/pgd/eps=1,robust/pgd/eps=2,certified/prediction,certified/label,certified/radius\n"
            f"0,a,1,1,3,3,2\n1,a,0,0,3,{3 if name == 'a' else 2},0.5\n"
        )
    for metric in ("robust/p50", "robust/pgd/eps=1", "certified/p25"):
        found = [part for part in compare(report(tmp_path, [metric])) if part.over == "examples"]
        assert [part.pairs for part in found] == [2], metric


def test_measurements_of_runs_that_differ_in_their_seeds_are_draws_of_one(tmp_path):
    """``evaluate run=FOLDER`` of three seeds of two methods: two rows of three."""
    for method in ("a", "b"):
        for seed in range(3):
            run(tmp_path / "trained", f"{method}{seed}", {"accuracy/clean": 0.5}, f"method={method}", seed=seed)
            folder = f"{tmp_path}/trained/{method}{seed}"
            run(
                tmp_path / "measured", f"{method}{seed}", {"robust/p50": 0.1 * seed + 0.3 * (method == "b")},
                f"run={folder}", f"model.path={folder}",
                resolved={"job_type": "evaluate", "evaluation.robust.examples": 8},
            )  # fmt: skip
    summary = report(tmp_path / "measured")
    assert [found["robust/p50"].count for _, found in summary.rows] == [3, 3]
    assert summary.keys == ["run.method"]
    assert {(part.over, part.pairs) for part in compare(summary)} == {("seeds", 3)}


@pytest.mark.parametrize(
    ("values", "ticks"), [((0.001, 0.003), [0.001, 0.003]), ((0.001, 0.00101, 0.009), None), ((1, 2, 3), [1, 2, 3])]
)
def test_labels_of_an_axis_do_not_run_into_each_other(tmp_path, values, ticks):
    for number, value in enumerate(values):
        run(tmp_path, str(number), {"accuracy/clean": 0.5 + 0.1 * number}, f"learner.optimizer.lr={value}")
    summary = report(tmp_path)
    drawn = tables.figure(summary, "learner.optimizer.lr", "accuracy/clean")
    axis = drawn.axes[0]
    if ticks is not None:
        assert list(axis.get_xticks()) == ticks
    drawn.canvas.draw()
    low, high = axis.get_xlim()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert len(boxes) > 1
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_the_page_of_a_sweep_is_one_file_that_says_who_leads(tmp_path):
    sweep(tmp_path)
    run(tmp_path, "d0", {}, "experiment=d", seed=0, done=False)
    (tmp_path / "d0" / "FAILED").write_text("InputError: <no> such thing")
    figures = tmp_path / "b0" / "figures"
    figures.mkdir()
    Image.new("RGB", (700, 300), "red").save(figures / "samples.png")
    (tmp_path / "b0" / "report.html").write_text("a report")
    (tmp_path / "b0" / "logs").mkdir()
    (tmp_path / "b0" / "logs" / "metrics.csv").write_text("epoch,val/accuracy/clean\n0,0.5\n1,0.7\n")
    (tmp_path / "c3" / "metrics.json").write_text(json.dumps({"radius": 1.0}))
    report(tmp_path)
    page = (tmp_path / "report" / "sweep.html").read_text()
    for part in (
        "accuracy/clean: experiment=b has the most, 7", "ahead of 2 of 2 others by more than chance over seeds",
        "12 finished runs in 3 rows; 1 left out", "&lt;no&gt; such thing",
        "accuracy/clean is missing in 1 runs of rows that have it: c3", "Training: accuracy", "../b0/report.html",
        "../a0/metrics.json",
    ):  # fmt: skip
        assert part in page, part
    assert page.count("data:image/png;base64,") == 2  # curves, and the picture of a row that has one
    assert not re.search(r'(src|href)="(?!data:|\.\./)', page)  # nothing is fetched from elsewhere


def test_names_of_folders_and_values_are_shown_as_they_are(tmp_path):
    for place, value in (("lr=1 #2", r"a$\b$1"), ("100%25", "$x_$1")):
        run(tmp_path, place, {"accuracy/clean": len(place) / 10}, f"p={value}", "lr=1")
        run(tmp_path, f"{place}b", {"accuracy/clean": len(place) / 10}, f"p={value}", "lr=2")
    report(tmp_path)
    page = (tmp_path / "report" / "sweep.html").read_text()
    assert {"../lr%3D1%20%232/metrics.json", "../100%2525/metrics.json"} <= set(re.findall(r'href="([^"]+)"', page))


def test_a_sweep_of_sets_needs_no_names_of_metrics(tmp_path):
    run(tmp_path, "1", {"quality/pgd_ae": 0.01, "radius": 3.0, "coverage/radius": 0.9}, "learner.spread=1")
    run(tmp_path, "2", {"quality/pgd_ae": 0.02, "radius": 4.0, "coverage/radius": 0.8}, "learner.spread=0.30000000001")
    summary = report(tmp_path)
    assert summary.metrics == ["quality/pgd_ae", "radius", "coverage/radius"]
    assert [row["learner.spread"] for row, _ in summary.rows] == ["0.3", "1"]
    assert "All rows" not in (tmp_path / "report" / "sweep.html").read_text()


def test_coverages_to_unlike_tolerances_are_not_compared(tmp_path):
    for number, (error, share, tolerance) in enumerate([(0.001, 0.9, 0.002), (0.02, 1.0, 0.04)]):
        for seed in range(3):
            metrics = {
                "quality/pgd_ae": error * (1 + 0.01 * seed), "coverage/radius": share - 0.001 * seed,
                "coverage/tolerance": tolerance, "quality/no_change": 0.03,
            }  # fmt: skip
            run(tmp_path, f"{number}{seed}", metrics, f"learner.spread={number}", seed=seed)
    summary = report(tmp_path)
    page = (tmp_path / "report" / "sweep.html").read_text()
    assert re.search(r"quality/pgd_ae: spread=0 has the least, 0.00101; ahead of 1 of 1 others", page)
    assert {part.metric for part in compare(summary)} == {"quality/pgd_ae"}
    assert "coverage/radius: not compared, since some sets are too coarse" in page
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {"quality_pgd_ae.png"}
    assert "99.90 ± 0.25 (too coarse to say anything)" in (tmp_path / "report" / "report.md").read_text()
    alike = [run_ for run_ in finished.find_runs(tmp_path)[0] if run_.metrics["coverage/tolerance"] == 0.04]
    assert comparable.is_comparable(aggregate.summarise(alike, ["*"]), "coverage/radius")
    run(tmp_path, "unknown", {"coverage/radius": 0.9}, "learner.spread=1", seed=9)  # of an earlier version
    (unknown,) = [run_ for run_ in finished.find_runs(tmp_path)[0] if "coverage/tolerance" not in run_.metrics]
    for runs in ([unknown, *alike], [*alike, unknown]):
        assert not comparable.is_comparable(aggregate.summarise(runs, ["*"]), "coverage/radius")
    assert comparable.is_comparable(aggregate.summarise([unknown], ["*"]), "coverage/radius")


@pytest.mark.parametrize(("unchanged", "is_coarse"), [(0.03, True), (0.05, False)])
def test_a_coverage_that_says_nothing_does_not_lead_the_page(tmp_path, unchanged, is_coarse):
    for number in range(2):
        metrics = {"coverage/radius": 1.0, "coverage/tolerance": 0.04, "quality/no_change": unchanged}
        run(tmp_path, str(number), metrics, f"learner.spread={number}")
    report(tmp_path, ["coverage/radius"])
    page = (tmp_path / "report" / "sweep.html").read_text()
    assert ("2 of 2 rows share the highest value, 100.0 %" in page) != is_coarse
    assert ("not compared, since some sets are too coarse" in page) == is_coarse


def test_options_of_tables_are_refused_for_one_run(tmp_path, capsys):
    run(tmp_path, "one", {"accuracy/clean": 0.5})
    for option in (["--metric", "nix"], ["--x", "seed"], ["--out", str(tmp_path / "elsewhere")]):
        with pytest.raises(SystemExit) as stopped:
            main([str(tmp_path / "one"), *option])
        assert stopped.value.code == 2
        assert f"{option[0]} is for tables of several runs" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_an_unknown_metric_is_answered_with_the_nearest(tmp_path):
    run(tmp_path, "1", {"accuracy/clean": 0.5, **{f"robust/eps={n}": 0.5 for n in range(40)}})
    with pytest.raises(InputError, match=r"did you mean accuracy/clean\?$"):
        report(tmp_path, ["acuracy/clean"])
    with pytest.raises(InputError, match=r"there are accuracy/clean$"):
        report(tmp_path, ["nix"])


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
    assert tables.axis_key(summary, None) == "data.train_size"
    with pytest.raises(InputError, match="--x experiment"):
        tables.axis_key(summary, "experiment")


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


def test_sets_and_models_are_tables_of_their_own(tmp_path, capsys):
    run(tmp_path, "s1", {"quality/pgd_ae": 0.01, "radius": 3.0}, "experiment=pairs", "learner.spread=1")
    run(tmp_path, "s2", {"quality/pgd_ae": 0.02, "radius": 4.0}, "experiment=pairs", "learner.spread=2")
    for seed in range(2):
        for method in ("a", "b"):
            metrics = {"accuracy/clean": 0.5 + (method == "b") / 4 + seed / 50, "radius": 3.0}
            run(tmp_path, f"{method}{seed}", metrics, "experiment=pairs/model", f"method={method}", seed=seed)
    summary = report(tmp_path)
    parts = {aggregate.title_of(part): part for part in aggregate.by_kind(summary, ["*"])}
    models, sets = parts["models"], parts["perturbation sets"]
    assert (models.keys, [row["method"] for row, _ in models.rows]) == (["method"], ["a", "b"])
    assert (sets.keys, [row["learner.spread"] for row, _ in sets.rows]) == (["learner.spread"], ["1", "2"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Models\n\n| method | accuracy/clean % | radius | runs |" in text
    assert "## Perturbation sets\n\n| learner.spread | quality/pgd_ae | radius | runs |" in text
    page = (tmp_path / "report" / "sweep.html").read_text()
    assert "6 finished runs in 4 rows" in page
    assert "accuracy/clean: method=b has the most" in page
    assert page.count('<table class="results">') == 2
    found = [part for part in compare(summary) if part.metric == "accuracy/clean"]
    within = [part for part in among(compare(summary), summary, models) if part.metric == "accuracy/clean"]
    assert [(part.first, part.second) for part in within] == [(0, 1)]
    assert [part.difference for part in within] == [part.difference for part in found]
    assert len(aggregate.by_kind(report(tmp_path, ["accuracy/clean"]), ["accuracy/clean"])) == 1  # blank in the others
    run(tmp_path, "u1", {"other": 0.1, "radius": 3.0}, "experiment=untested", "learner.spread=1")
    run(tmp_path, "u2", {"other": 0.1, "radius": 4.0}, "experiment=untested", "learner.spread=2")
    wanted = ["radius", "accuracy/clean"]
    parts = aggregate.by_kind(report(tmp_path, wanted), wanted)
    assert sorted(len(part.rows) for part in parts) == [2, 4]  # models; sets and what has a radius alone
    wanted = ["quality/pgd_ae", "accuracy/clean"]
    parts = aggregate.by_kind(report(tmp_path, wanted), wanted)
    assert sum(len(part.rows) for part in parts) == 6
    (tmp_path / "s2" / "metrics.json").write_text(json.dumps({"quality/pgd_ae": 1.0, "accuracy/clean": 1.0}))
    parts = aggregate.by_kind(report(tmp_path), ["*"])
    assert sorted(len(part.rows) for part in parts) == [2, 4]  # one that learned a set and a model joins them


@pytest.mark.parametrize(("width", "heads"), [(200, "method"), (40, "row 1")])
def test_a_table_that_is_too_wide_is_turned(tmp_path, width, heads):
    for number in range(5):
        metrics = {"accuracy/clean": 0.5, "accuracy/perturbed": number / 10, "robust/full": 0.2, "certified/p50": 0.1}
        run(tmp_path, str(number), metrics, f"method=[m{number}]", "data=x")
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(report(tmp_path), "models", console)
    text = console.export_text()
    assert heads in text
    for number in range(5):
        assert f"[m{number}]" in text  # not taken for rich's markup
        assert f" {10 * number:.2f} " in text
    for name in ("accuracy/", "perturbed %", "robust/", "full %", "p50 %", "alike: data=x"):
        assert name in text
    assert max(map(len, text.splitlines())) <= width


def test_tables_in_logs_are_as_wide_as_a_line_there_may_be(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for number in range(5):
        metrics = {"accuracy/clean": 0.5, "accuracy/perturbed": number / 10, "robust/full": 0.2, "certified/p50": 0.1}
        run(tmp_path, str(number), metrics, f"method=a_method_of_some_length_{number}", "data=x")
    print_summary(report(tmp_path))
    wide = capsys.readouterr().out
    assert "a_method_of_some_length_4" in wide  # in one line
    assert 80 < max(map(len, wide.splitlines())) <= 160
    monkeypatch.setenv("COLUMNS", "60")
    print_summary(report(tmp_path))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
