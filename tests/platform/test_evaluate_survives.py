"""An evaluation whose actor dies: the case it had is a row that says so, another actor does the rest."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from clinfuse_platform.verb_table import run_verb
from clinfuse_prep.store import CaseStore

pytestmark = pytest.mark.ray


def kill_the_reader(pipe: Path) -> None:
    """Wait until an actor opens the pipe as if it were a fused image, then kill it."""
    with pipe.open("wb"):
        for process in psutil.Process().children(recursive=True):
            if "ray::Evaluator" in " ".join(process.cmdline()):
                process.kill()


def test_an_actor_that_dies_costs_its_case_a_row_and_is_replaced(
    ray_session: None, tiny_store: Path, tmp_path: Path
) -> None:
    theirs, store = tmp_path / "theirs", CaseStore(tiny_store)
    theirs.mkdir()
    np.save(theirs / "gggggg.npy", store.read("gggggg").anatomy)
    os.mkfifo(theirs / "ffffff.npy")
    threading.Thread(target=kill_the_reader, args=(theirs / "ffffff.npy",), daemon=True).start()
    words = [f"their={theirs}", "max", "--bare", "--actors", "1", "--data", str(tiny_store)]
    words += ["--out", str(tmp_path / "out")]
    result = run_verb("evaluate", words)
    rows = pd.read_parquet(result["metrics"])
    failed = rows[rows["status"].str.startswith("failed")]
    assert result["lost"] == 1 and failed[["method", "case_id"]].to_numpy().tolist() == [["their", "ffffff"]]
    assert "ActorDiedError" in failed["status"].iloc[0] and "/" not in failed["status"].iloc[0]
    done = rows[rows["status"] == "ok"].groupby("method")["case_id"].unique()
    assert done["their"].tolist() == ["gggggg"] and done["max"].tolist() == ["ffffff", "gggggg"]
    (theirs / "ffffff.npy").unlink()
    np.save(theirs / "ffffff.npy", store.read("ffffff").anatomy)
    assert run_verb("evaluate", words)["lost"] == 0
