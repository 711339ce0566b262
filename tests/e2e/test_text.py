"""msa tokenize and msa render: the golden cases through the program, and bad input."""

import json

import pytest


def as_lines(values):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


@pytest.mark.parametrize("name", ["bpe-1k", "bpe-8k"])
def test_tokenize_matches_every_golden_case(msa, golden, name):
    folder = golden(f"tokenizer/{name}")
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    result = msa("tokenize", folder, "--jsonl", stdin=as_lines(c["text"] for c in cases))
    assert result.returncode == 0 and not result.stderr
    ids = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert ids == [c["ids"] for c in cases]


@pytest.mark.parametrize("name", ["bpe-1k", "bpe-8k"])
def test_detokenize_matches_every_golden_case(msa, golden, name):
    folder = golden(f"tokenizer/{name}")
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    lines = as_lines(c["ids"] for c in cases)
    result = msa("tokenize", folder, "--jsonl", "--decode", stdin=lines)
    assert result.returncode == 0 and not result.stderr
    texts = [json.loads(line) for line in result.stdout.decode().split("\n")[:-1]]
    assert texts == [c["decoded"] for c in cases]


def test_whole_input_goes_there_and_back(msa, model):
    text = "Naïve café, 東京 🙂\n\twith tabs and 1234 numbers.".encode()
    ids = msa("tokenize", model, stdin=text)
    assert ids.returncode == 0
    assert msa("tokenize", model, "--decode", stdin=ids.stdout).stdout == text


@pytest.mark.parametrize(
    "line, rule",
    [(b"hello\n", "line 1"), (b'"ok"\n"open\n', "line 2"), (b'"\xff"\n', "line 1")],
)
def test_tokenize_names_the_bad_line(msa, model, line, rule):
    result = msa("tokenize", model, "--jsonl", stdin=line)
    assert result.returncode == 1
    assert rule in result.stderr.decode() and result.stderr.count(b"\n") == 1


def test_tokenize_rejects_ids_it_does_not_have(msa, model):
    result = msa("tokenize", model, "--jsonl", "--decode", stdin=b"[99999999]\n")
    assert result.returncode == 1 and b"99999999" in result.stderr


def test_tokenize_without_tokenizer(fails, tmp_path):
    fails(1, "tokenizer.json", "tokenize", tmp_path)


def test_render_matches_every_golden_case(msa, golden, model):
    cases = json.loads((golden("chat") / "cases.json").read_text(encoding="utf-8"))
    raw = (golden("chat") / "cases.json").read_text(encoding="utf-8")
    decoder, at = json.JSONDecoder(), raw.index("[") + 1
    for case in cases:
        # the case as it stands in the file: the spelling of its numbers matters
        at += len(raw[at:]) - len(raw[at:].lstrip(" \n\t,"))
        _, end = decoder.raw_decode(raw, at)
        result = msa("render", model, stdin=raw[at:end].encode())
        at = end
        if "error" in case:
            assert result.returncode == 1 and not result.stdout, case["name"]
            assert result.stderr.decode() == case["error"] + "\n", case["name"]
        else:
            assert result.returncode == 0 and not result.stderr, case["name"]
            assert result.stdout.decode() == case["rendered"], case["name"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"messages": 3}', b'{"messages": [\xff]}'])
def test_render_rejects_what_is_no_request(msa, model, text):
    result = msa("render", model, stdin=text)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.count(b"\n") == 1
