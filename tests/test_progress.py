"""What a terminal shows while something is trained or measured, and what it is told elsewhere."""

import io
import re

import pytest
import pytorch_lightning as pl
import rich
import torch
from torch import nn
from torch.utils.data import DataLoader

from latentrobust.reporting.progress import Diary, StageBar
from latentrobust.robustness.progress import Progress


class Counting(pl.LightningModule):
    """Its loss is always 3, its accuracy .75; it says of itself that it is a probe."""

    title = "probe"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.log("train/loss", 3.0, on_step=False, on_epoch=True)
        self.of_step = {"loss": torch.tensor(3.0)}
        return 12.0 + 0 * self.weight  # what is differentiated may be a sum

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy/clean", 0.75)
        if self.current_epoch < 2:
            self.log("val/accuracy/robust", 0.25)

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(tmp_path, *callbacks, **options):
    batches = DataLoader(torch.zeros(4, 1), batch_size=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=4, check_val_every_n_epoch=2, logger=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=tmp_path, num_sanity_val_steps=0,
        **options,
    )  # fmt: skip
    module = Counting()
    trainer.fit(module, batches, batches)
    trainer.test(module, batches, verbose=False)


def shown(tmp_path, width, **options):
    """Everything that a terminal so wide gets."""
    file = io.StringIO()
    bar = StageBar(console_kwargs={"file": file, "force_terminal": True, "width": width})
    bar.title, bar.INTERVAL = "twin", 0.0
    try:
        run(tmp_path, bar, **options)
    finally:
        rich.reconfigure()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "\n").splitlines()


def test_the_bar_says_what_is_trained_counts_from_one_and_shows_the_loss(tmp_path):
    lines = shown(tmp_path, 140, accumulate_grad_batches=2)
    assert any(re.match(r"twin: epoch 2 of 4 .*4/4 .* loss: 3 *$", line) for line in lines), lines
    assert any(re.match(r"twin: epoch [34] of 4 .* loss: 3 clean: 0.75 robust: 0.25 *$", line) for line in lines)
    # The second validation did not attack.
    assert any(re.match(r"twin: epoch 4 of 4 .*4/4 .* loss: 3 clean: 0.75 *$", line) for line in lines), lines
    narrower = shown(tmp_path, 110)
    assert any(re.match(r"twin: epoch [34] of 4 .* loss: 3 clean: 0.75 *$", line) for line in narrower), narrower
    assert not any("robust" in line for line in narrower)
    assert any(line.startswith("probe: measured") for line in lines), lines
    assert not any("epoch 0" in line or "v_num" in line for line in lines)


@pytest.mark.parametrize("width", [50, 60, 70, 80, 95])
def test_in_a_narrow_terminal_the_bar_is_one_row(tmp_path, width):
    lines = [line.strip() for line in shown(tmp_path, width)]
    assert any(re.match(r"twin: epoch 4 of 4 .*4/4 .* loss: 3$", line) for line in lines), lines
    assert all(line.startswith(("twin: ", "probe: ")) for line in lines if line), lines


def test_epochs_end_where_the_last_step_does(tmp_path, capsys):
    run(tmp_path, Diary("twin", speaks=True), enable_progress_bar=False, max_steps=5, accumulate_grad_batches=2)
    said = [line.split(",")[0].split(": ")[1] for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert said == ["epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3"]


def test_lines_do_not_say_the_values_of_an_earlier_validation_again(tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        run(tmp_path, Diary("twin", speaks=True), enable_progress_bar=False)
    said = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    lines = [re.sub(r", about \d:\d\d left", "", line) for line in said]
    assert lines == [
        "twin: epoch 1 of 4: train/loss 3",
        "twin: epoch 2 of 4: train/loss 3, val/accuracy/clean 0.75, val/accuracy/robust 0.25",
        "twin: epoch 3 of 4: train/loss 3",
        "twin: epoch 4 of 4: train/loss 3, val/accuracy/clean 0.75",
    ]
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("latentrobust")]
    assert logged == ["twin: training from epoch 0 to 4", *lines, "probe: Counting begins"]


def test_a_long_measurement_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Diary, "INTERVAL", 0.0)
    run(tmp_path, Diary("twin", speaks=True), enable_progress_bar=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "measured" in line]
    assert [line.split(",")[0] for line in lines] == [f"probe: measured {number} of 4 batches" for number in (1, 2, 3)]
    assert all(re.search(r", about 0:\d\d left$", line) for line in lines)


@pytest.mark.parametrize("title", ["", "adversarial"])
def test_lines_within_a_batch_name_the_model(title, monkeypatch, capsys):
    monkeypatch.setattr(Progress, "INTERVAL", 0.0)
    progress = Progress(10, title=title)
    progress.skip(0)
    progress.done(5)
    start = f"{title}: " if title else ""
    assert capsys.readouterr().err.startswith(f"{start}certified 5 of 10, about ")
