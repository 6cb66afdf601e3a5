"""Tests of icecache_local.half."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from icecache_local import half


def test_kernels_older_than_the_code_they_contain_are_dropped(tmp_path: Path):
    cache = tmp_path / "mdci" / "__pycache__"
    cache.mkdir(parents=True)
    files = {}
    sources = [tmp_path / name for name in ("mdci/nodes.py", *half.CALLED)]
    (tmp_path / "device").mkdir()
    for age, path in enumerate((cache / "new.nbi", sources[0], cache / "old.nbi", *sources[1:])):
        path.write_text("")
        os.utime(path, (1000 - age, 1000 - age))
        files[path.name] = path
    half.drop_stale_kernels(tmp_path)
    assert files["new.nbi"].exists() and not files["old.nbi"].exists()


@pytest.mark.parametrize("n", [1, 7, 64, 80, 129])
def test_half_floats_survive_and_dots_are_exact_enough(n):
    rng = np.random.default_rng(n)
    row = rng.standard_normal(n).astype(np.float16)
    vector = rng.standard_normal(n).astype(np.float32)
    zero = np.int64(0)
    got = half.dot(row.view(np.uint16), zero, vector, zero, np.int64(n))
    assert got == pytest.approx(float(row.astype(np.float64) @ vector), abs=1e-4)
