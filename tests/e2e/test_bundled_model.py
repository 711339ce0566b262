"""The model of the repository: small enough, loads, and finds a fact in text that it never saw."""

import json

import pytest
from conftest import SOURCE

MODEL = SOURCE / "models/msa-36m"


def test_it_is_small():
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 40e6


@pytest.mark.parametrize("length, seed", [("4K", 1), ("4K", 2), ("32K", 3)])
def test_it_finds_the_needle(msa, tmp_path, length, seed):
    text = "".join(path.read_text() for path in sorted((SOURCE / "docs").glob("*.md")))
    (tmp_path / "text.txt").write_text(text)
    done = msa("needle", MODEL, "--file", tmp_path / "text.txt", "--length", length, "--seed", seed, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["readings"][0]
    assert answer["right"], answer["answer"]
