from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable

import pytest
import tensorflow as tf

from tests import served_models
from tests.served_models import Export

Exports = Callable[[str, str], Export]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports a model of `served_models.MODELS` in a form of `EXPORTS`: once for all processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of the whole session

    @functools.cache
    def exported(model: str, form: str) -> Export:
        target = folder / "exports" / form / model
        target.mkdir(parents=True, exist_ok=True)
        with (target / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target / "1").exists():
                served_models.export(model, form, target)
        return Export(target / "1", tf.saved_model.load(str(target / "1")))

    return exported
