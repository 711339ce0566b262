"""msa needle: the fact is in the document, it is asked for, and both readings are counted."""

import json

import pytest


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(" ".join(f"Nothing of note happened on day {i} of the voyage." for i in range(2000)))
    return path


@pytest.fixture
def sources(tmp_path):
    """A document in which no sentence ends."""
    path = tmp_path / "sources.txt"
    path.write_text("\n".join(f"int f{i}(int x) {{ return x + {i}; }}" for i in range(3000)))
    return path


def ask(msa, model, *words):
    done = msa("needle", model, "--threads", 1, "--length", "3K", "--json", "-q", *words)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


def test_two_readings(msa, model, document):
    out = ask(msa, model, "--file", document, "--compare")
    assert 2900 <= out["tokens"] <= 3072 and 0 <= out["depth"] <= 1
    assert out["expected"] in out["needle"] and out["needle"].endswith(".") and out["needle"][0] == "O"
    assert out["question"].endswith("?")
    sparse, dense = out["readings"]
    assert (sparse["attention"], dense["attention"]) == ("sparse", "dense")
    for one in (sparse, dense):
        assert one["right"] == (out["expected"] in one["answer"])
        assert one["read_seconds"] > 0 and one["generated_tokens"] > 0 and "\n" not in one["answer"]
    assert dense["blocks_read"] == dense["blocks_visible"]

    # tiny: 3 MSA layers, 2 groups, dim 32, blocks of 16, K = 4, bf16; every answer token sees all but few
    index, block = 3 * 32 * 2 * out["tokens"], 2 * 16 * 32 * 2
    assert sparse["token_bytes"] == pytest.approx(index + 3 * 2 * 4 * block)
    assert dense["token_bytes"] == pytest.approx(3 * 2 * out["tokens"] / 16 * block, rel=0.03)
    assert sparse["blocks_read"] < dense["blocks_read"] / 10


def test_the_seed_decides(msa, model, document):
    first, again, other = (ask(msa, model, "--file", document, "--seed", seed) for seed in (1, 1, 2))
    assert first["needle"] == again["needle"] != other["needle"]
    assert [one["attention"] for one in first["readings"]] == ["sparse"]
    assert first["readings"][0]["answer"] == again["readings"][0]["answer"]


def test_a_document_without_sentences(msa, model, sources):
    out = ask(msa, model, "--file", sources)
    assert out["needle"].startswith("One of ") and len(out["needle"]) < 100 and out["expected"] in out["needle"]


def test_what_a_person_reads(msa, model, document):
    done = msa("needle", model, "--threads", 1, "--length", "2K", "--file", document, "--compare")
    assert done.returncode == 0
    lines = done.stdout.decode(errors="replace").splitlines()
    assert lines[0].startswith(f"document  {document}: ") and lines[1].startswith("hidden    after ")
    for start in ("question  ", "sparse   ", "dense    ", "reading  ", "read of the cache for a token  "):
        assert any(line.startswith(start) for line in lines), start
    assert b"sparse attention" in done.stderr and b"dense attention" in done.stderr
    made_up = msa("needle", model, "--threads", 1, "--length", "2K", "-q").stdout
    assert made_up.startswith(b"document  made-up sentences: 1,")


def test_mistakes(model, fails, tmp_path):
    fails(1, "length = 64", "needle", model, "--length", 64)
    fails(1, "No such file", "needle", model, "--length", "2K", "--file", tmp_path / "none.txt")
    fails(1, "at most 65536", "needle", model, "--length", "1M")
