"""msa bench attention on cases small enough for a test."""

import csv
import json

import pytest

CASE = {
    "case": "tiny",
    "phase": "decode",
    "q_lens": [1, 3],
    "kv_lens": [700, 37],
    "n_q_heads": 8,
    "n_kv_heads": 2,
    "head_dim": 32,
    "index_dim": 16,
    "block": 16,
    "topk": 4,
    "dtype": "bf16",
}


def write_cases(tmp_path, *cases):
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    return path


def test_rows_of_every_operator(msa, tmp_path):
    prefill = dict(CASE, case="p", phase="prefill", q_lens=[33], kv_lens=[300], dtype="f32")
    quantised = dict(CASE, case="q", dtype="fp8_e4m3")
    refused = dict(CASE, case="r", block=24)  # by the library; the other cases still run
    cases = write_cases(tmp_path, CASE, refused, prefill, quantised)
    out = tmp_path / "out.csv"
    result = msa("bench", "attention", "--cases", cases, "--out", out, "--budget", "0")
    assert result.returncode == 1
    assert b"r: dense_attend: block_size = 24" in result.stderr
    rows = list(csv.DictReader(out.open()))
    assert [(row["case"], row["op"]) for row in rows] == [
        (case, op) for case in ("tiny", "p", "q") for op in ("dense", "select", "attend", "msa")
    ]
    for row in rows:
        assert row["check"] == "ok" and int(row["reps"]) >= 3
        assert 0 < float(row["p10_us"]) <= float(row["median_us"]) <= float(row["p90_us"])
        assert float(row["read_gbytes_s"]) > 0 and float(row["gemm_gflop_s"]) > 0
    assert rows[0]["T"] == "4" and rows[0]["S"] == "700" and rows[0]["batch"] == "2"
    assert out.with_suffix(".svg").read_text().startswith("<svg ")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"blocks": 3}, 'unknown key "blocks"'),
        ({"dtype": "int8"}, 'dtype = "int8"'),
        ({"phase": "train"}, 'phase = "train"'),
        ({"topk": 1.5}, "topk: a whole number"),
        ({"q_lens": [1]}, "q_lens has 1"),
        ({"q_lens": [1, 40]}, "q_lens[1] = 40"),
        ({"case": "a,b"}, "comma"),
    ],
)
def test_a_bad_case_is_named(fails, tmp_path, change, words):
    fails(1, words, "bench", "attention", "--cases", write_cases(tmp_path, dict(CASE, **change)))


def test_a_missing_key_and_broken_lines(fails, tmp_path):
    short = {key: value for key, value in CASE.items() if key != "topk"}
    fails(1, 'key "topk" is missing', "bench", "attention", "--cases", write_cases(tmp_path, short))
    path = tmp_path / "broken.jsonl"
    for text in ("{", "[]", '{"case":"a"', '{"case":"a"} x', '{"q_lens":[1,'):
        path.write_text(text)
        fails(1, "broken.jsonl:1", "bench", "attention", "--cases", path)
