import json
import mmap
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latentrobust import benchmark
from latentrobust.benchmark import attack, certify, costs, main, measuring
from latentrobust.benchmark import attacks as benchmark_attacks
from latentrobust.benchmark import certification as benchmark_certification
from latentrobust.benchmark import cvaes as benchmark_cvaes
from latentrobust.benchmark import flows as benchmark_flow
from latentrobust.benchmark import unets as benchmark_unets
from latentrobust.benchmark.measuring import Conditions
from latentrobust.networks import cvae
from latentrobust.precision import bfloat16_is_slow

HERE = Conditions(torch.device("cpu"), 0.1)
ONE_NETWORK = (("mnist_fc", {"hidden": 8}, "bernoulli", {"cpu": 4}),)
SMALL = (("narrow", {"name": "wide_resnet", "depth": 10, "width": 1}, {"cpu": 8}),)


def test_data_benchmark_prints_and_writes_both_rates(tmp_path, capsys):
    main(["data", "--seconds", "0.1", "--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["loop"] == "data"
    assert row["shape"] == [128, 1, 42, 42]
    assert row["samples_per_second"] > row["plain_samples_per_second"] > 0
    assert row["ratio"] == pytest.approx(row["samples_per_second"] / row["plain_samples_per_second"], rel=0.01)
    assert set(row) >= {"dtype", "device", "peak_memory_mb"}
    assert "  data\n" in capsys.readouterr().out


def test_attack_and_certify_measure_what_they_say(monkeypatch):
    for module in ("attacks", "certification"):
        monkeypatch.setattr(f"latentrobust.benchmark.{module}.CLASSIFIERS", SMALL)
    rows = {row["loop"]: row for row in [*attack(HERE), *certify(HERE)]}
    assert set(rows) == {"attack/narrow", "training_step/narrow", "certify/narrow", "certify_adaptive", "pixel_bounds"}
    for row in rows.values():
        assert row["samples_per_second"] > 0
        assert row["plain_samples_per_second"] > 0
    for loop in ("attack/narrow", "training_step/narrow", "certify/narrow"):
        row = rows[loop]
        assert row["share_of_floor"] == pytest.approx(
            row["samples_per_second"] / row["floor_samples_per_second"], rel=0.01
        )
        assert row["share_of_peak"] == pytest.approx(
            row["samples_per_second"] * row["gflop_per_sample"] / row["peak_gflops"], rel=0.05, abs=0.001
        )
    assert rows["pixel_bounds"]["ratio"] > 50
    assert rows["certify_adaptive"]["draws_ratio"] > 7
    gaps = [value for name, value in rows["certify_adaptive"].items() if name.startswith("gap_at")]
    assert all(abs(gap) <= 0.005 for gap in gaps)


def test_costs_are_of_what_grows(monkeypatch, capsys):
    axes = (
        costs.AXES[0]._replace(sizes=(2, 4, 8)),
        costs.AXES[2]._replace(sizes=(1, 2, 3), arguments=lambda size: (2, 2, size)),
        costs.AXES[4]._replace(sizes=(20, 40, 80), arguments=lambda size: (2, size)),
    )
    monkeypatch.setattr(costs, "AXES", axes)
    asked = []
    monkeypatch.setattr(costs, "step_memory", lambda *call: asked.append(call) or measuring.Memory(1.0, 2.0))
    rows = costs.cost(HERE)
    assert [row["loop"] for row in rows[:3]] == [f"cost/attack/examples={size}" for size in (2, 4, 8)]
    assert [row["loop"].rpartition("=")[0] for row in rows[3::3]] == ["cost/attack/radii", "cost/certify/draws"]
    for first in (0, 3, 6):
        assert rows[first]["ratio"] == 1
    for row, (_, device, *arguments) in zip(rows, asked, strict=True):
        assert device == HERE.device
        images, size = arguments[0], int(row["loop"].rpartition("=")[2])
        assert row["shape"] == [images, 1, 42, 42]
        grows = size if "examples" in row["loop"] else size * images
        assert row["seconds"] == pytest.approx(grows / row["samples_per_second"], rel=0.02, abs=1e-3)
    assert "a ratio of 1 is a cost in proportion" in capsys.readouterr().out


def test_no_image_of_the_costs_is_fooled():
    asked = costs.Attacked(HERE.device, 3, 4, 2)
    found = asked.attack(asked.model, asked.set, asked.x, asked.y, radii=asked.radii)
    assert not found.fooled.any()
    assert found.queries[-1].tolist() == [1 + 2 * 5] * 3  # the centre, and all steps at both radii


def test_training_steps_of_cvaes_are_measured(monkeypatch, capsys):
    networks = (("mnist_fc", {"hidden": 8, "latent": 4}, "bernoulli", {"cpu": 4}),)
    networks += (("structured", {"residual": 4}, "gaussian", {"cpu": 2}),)
    monkeypatch.setattr("latentrobust.benchmark.cvaes.NETWORKS", networks)
    main(["cvae", "--seconds", "0"])
    out = capsys.readouterr().out
    assert "measuring cvae" in out
    assert "cvae/mnist_fc" in out
    assert "cvae/structured" in out


def test_both_sides_are_measured_in_turns():
    order = []
    runs = [lambda letter=letter: order.append(letter) or 1 for letter in "abc"]
    assert len(measuring.in_turns(0.0, *runs, least=3)) == 3
    assert "".join(order) == "abc" * 4


def test_operations_are_those_of_the_layers():
    """A linear layer of 5 to 3 takes 2·5·3 operations a sample forwards, as many for its weights' gradient."""
    layer = torch.nn.Linear(5, 3)

    def step():
        layer(torch.ones(7, 5)).sum().backward()
        return 7

    found = measuring.compared(HERE, "linear", [7, 5], step, step, step)
    assert found["gflop_per_sample"] * 1e9 == pytest.approx(2 * 2 * 15)


def test_a_row_holds_what_the_three_sides_reached(monkeypatch):
    monkeypatch.setattr(measuring, "in_turns", lambda *_: [[8.0, 10.0, 11.0], [5.0] * 3, [12.5] * 3])
    monkeypatch.setattr(measuring, "peaks", lambda *_: measuring.Peaks(operations=6000.0, copied=1.0))
    layer = torch.nn.Linear(5, 3)

    def step():
        with torch.no_grad():
            layer(torch.ones(7, 5))
        return 7

    found = measuring.compared(Conditions(HERE.device, 0.1), "linear", [7, 5], step, step, step)
    assert (found["ratio"], found["share_of_floor"], found["floor_samples_per_second"]) == (2.0, 0.8, 12.5)
    assert found["share_of_peak"] == pytest.approx(10 * 2 * 15 / 6000)
    assert (found["runs"], found["samples_per_second_between"]) == (3, [8.0, 11.0])
    compiled = measuring.compared(Conditions(HERE.device, 0.1, compiled=True), "linear", [7, 5], step, step)
    assert "share_of_peak" not in compiled


def test_large_networks_take_smaller_batches_for_the_seconds_that_are_given(monkeypatch):
    asked, clock = [], [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])

    def step(count):
        asked.append(count)

        def run():
            clock[0] += 0.01
            return count

        return run

    def size(seconds, **options):
        return Conditions(HERE.device, seconds, **options).size({"cpu": 64}, step, runs=10)

    assert [size(seconds) for seconds in (0.45, 60.0, 0.001)] == [4, 64, 1]
    assert asked == [1, 1, 1]
    assert size(0.4, batch=5) == 5
    assert len(asked) == 3


def test_bfloat16_is_asked_of_the_machine(monkeypatch, capsys):
    for able, offered in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"architecture": "x86_64", **able})
        assert (bfloat16_is_slow(HERE.device) is None) is offered
    with pytest.raises(SystemExit) as stopped:
        main(["attack", "--precision", "bf16"])
    assert stopped.value.code == 2
    assert "neither AVX512-BF16 nor AMX" in capsys.readouterr().err
    monkeypatch.setattr("latentrobust.benchmark.cvaes.NETWORKS", ONE_NETWORK)
    main(["cvae", "--precision", "bf16", "--force", "--seconds", "0"])
    assert "cvae/mnist_fc" in capsys.readouterr().out


def test_without_a_compiler_nothing_is_compiled(monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr("latentrobust.benchmark.cvaes.NETWORKS", ONE_NETWORK)
    main(["cvae", "--compile", "--seconds", "0"])
    assert capsys.readouterr().out.count("nothing is compiled") == 1


def test_unknown_loops_are_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["nonsense"])
    assert stopped.value.code == 2
    assert "nonsense" in capsys.readouterr().err
    for arguments, reason in (
        (["data", "--batch", "0"], "--batch"),
        (["data", "--device", "tpu"], "--device tpu"),
        (["data", "--json", "no/such/folder.json"], "no/such"),
        (["data", "--json", "."], "--json .: that is a folder"),
        (["data", "--seconds", "-1"], "--seconds must be a number from 0 up"),
        (["data", "--seconds", "nan"], "--seconds must be a number from 0 up"),
        (["data", "--seconds", "inf"], "--seconds must be a number from 0 up"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert reason in capsys.readouterr().err


def test_the_plain_flow_computes_the_same():
    size = {"image_shape": [3, 8, 8], "levels": 2, "steps": 2, "hidden": 8}
    network = benchmark_flow.glow(torch.device("cpu"), size)
    x = torch.rand(2, 3, 8, 8)
    z, log_det = network.encode(x)
    torch.testing.assert_close(benchmark_flow.plain_encode(network, x), (z, log_det), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(benchmark_flow.plain_decode(network, z)[0], network.decode(z), rtol=1e-4, atol=1e-5)


def memory_here(make, *arguments):
    """In this process: starting one for each figure would take longer than the rest."""
    return measuring._resident(make, arguments)


def test_the_flow_loops_run(monkeypatch):
    monkeypatch.setattr(benchmark_flow, "SIZE", {"image_shape": [3, 32, 32], "levels": 1, "steps": 1, "hidden": 4})
    monkeypatch.setattr(benchmark_flow, "BATCH", {"cpu": 2})
    monkeypatch.setattr(benchmark_flow, "step_memory", memory_here)
    rows = benchmark_flow.flow(replace(HERE, seconds=0.0))
    assert [row["loop"] for row in rows[:4]] == [f"flow/{name}" for name in benchmark_flow.LOOPS]
    assert all(row["samples_per_second"] > 0 for row in rows)
    assert rows[-1]["kept_memory_mb"] >= 0


def test_the_unet_loops_run_and_the_plain_decoder_computes_the_same(monkeypatch, capsys):
    small = {
        "image_shape": [3, 17, 26],
        "channels": [4, 6, 8],
        "latents": [2, 2, 2],
        "pool": [[16, 26], [8, 13], [4, 6]],
    }
    monkeypatch.setattr(benchmark_unets, "SIZE", small)
    monkeypatch.setattr(benchmark_unets, "MODEL", {"channels": [4, 4], "classes": 36})
    monkeypatch.setattr(benchmark_unets, "step_memory", memory_here)
    rows = benchmark_unets.unet(HERE)
    assert [row["loop"] for row in rows] == ["unet/smoothed_segmentation", "unet/training_step"]
    assert all(row["samples_per_second"] > 0 and row["plain_samples_per_second"] > 0 for row in rows)
    assert "would take" in capsys.readouterr().out
    network = cvae.build("unet", **small).eval()
    x, z = torch.rand(2, 3, 17, 26), torch.randn(2, 6)
    torch.testing.assert_close(benchmark_unets.plain_generate(network.generator, x, z), network.generate(x, z))


def test_what_was_measured_before_an_interruption_is_written(tmp_path, monkeypatch, capsys):
    def interrupted(on):
        raise KeyboardInterrupt

    row = {"loop": "quick", "shape": [1], "unit": "images", "device": "cpu", "samples_per_second": 1.0,
           "plain_samples_per_second": 1.0, "ratio": 1.0, "peak_memory_mb": 1.0}  # fmt: skip
    monkeypatch.setattr(benchmark, "LOOPS", {"quick": lambda on: [row], "slow": interrupted})
    with pytest.raises(SystemExit) as stopped:
        main(["--json", str(tmp_path / "rows.json")])
    assert stopped.value.code == 130
    said = capsys.readouterr()
    assert said.err.strip() == "latentrobust benchmark: interrupted"
    assert "quick" in said.out
    assert json.loads((tmp_path / "rows.json").read_text()) == [row]


class Counted:
    """How often a network is asked for its prior, and of how many images."""

    def __init__(self, network, monkeypatch):
        self.images, encode = [], network.encode_prior

        def counting(x):
            self.images.append(len(x))
            return encode(x)

        monkeypatch.setattr(network, "encode_prior", counting)


def test_the_plain_loops_ask_for_a_prior_as_often_as_the_published_ones(monkeypatch):
    """Once for an attack, and twice for a certificate: for the selection and for the estimation."""
    _, arguments, _ = SMALL[0]
    plain = benchmark_attacks._Plain(HERE, arguments, 2)
    counted = Counted(plain.set.network, monkeypatch)
    plain.attack()
    assert counted.images == [2]
    plain = benchmark_certification._Plain(HERE, arguments, 40)
    assert (plain.draws + benchmark_certification.SELECTION) % 40 == 0  # whole batches
    counted = Counted(plain.set.network, monkeypatch)
    plain.certify()
    assert counted.images == [1] * 2 * (40 // 8)


def test_the_sides_of_a_cvae_s_step_do_the_same(monkeypatch):
    monkeypatch.setattr(measuring, "in_turns", lambda seconds, *runs: [[float(operations(run))] for run in runs])
    monkeypatch.setattr(benchmark_cvaes, "NETWORKS", (("structured", {"residual": 4}, "gaussian", {"cpu": 2}),))
    (row,) = benchmark_cvaes.training(HERE)
    assert row["ratio"] == pytest.approx(1, rel=0.01)
    assert row["share_of_floor"] == pytest.approx(1, rel=0.01)


def operations(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_memory_is_that_of_what_was_measured():
    """Not of what ran before it, in this process or the one that started it."""
    # Mapped, and given back: what an allocator hands out may have been there before.
    with mmap.mmap(-1, 512 << 20) as before:
        before[:: mmap.PAGESIZE] = bytes(len(range(0, len(before), mmap.PAGESIZE)))
    held = []

    def step():
        held[:] = [torch.ones(2**24)]
        return 1

    resident = measuring._peak(HERE.device)
    try:
        measuring.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not forget the peak of a process")
    found = measuring.compared(HERE, "ones", [1], step, lambda: 1, counted=False)
    assert found["peak_memory_mb"] < resident - 100
