"""Sets and models to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from latentrobust.remote import the_hub, upload
from latentrobust.sharing.card import stored_in, write_shareable


def push_run(run: str | Path, repository: str, *, licence: str, model: str | None = None, private: bool = True) -> str:
    """Upload the set of a finished run, or one of its models, with a card; returns the name to load it by.

    Args:
        run: its folder.
        repository: ``OWNER/NAME`` on the hub, which is made where there is none.
        licence: of the data, as its owner states it.
        model: name of the model; None for the run's set, or its only model.
        private: whether nobody else sees a repository that is made here.

    Raises:
        InputError: for a run that is not finished, or a hub that does not take it.
    """
    found = stored_in(run, model)
    hub = the_hub()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_shareable(found, Path(scratch) / "shared", licence)
        return upload(hub, folder, repository, private)
