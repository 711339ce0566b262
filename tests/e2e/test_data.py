"""msa train-tokenizer and msa shards: files that other programs read, work that is done once, bad input."""

import json
import random

import pytest

SENTENCES = [
    "The keeper of the lighthouse counted 12345 steps, then 7 more.",
    "\"Don't\", she said, \u201cthe na\u00efve caf\u00e9 on the rue \u00c9tienne is closed!\u201d",
    "\u6771\u4eac\u3067 2024\u5e74 \U0001f642 \u2014 and the keepers' light went on.\r\n\tIt's done;",
]


def make_text(seed, n):
    draw = random.Random(seed)
    words = " ".join(SENTENCES).split(" ")
    return "".join(draw.choice(words) + draw.choice([" ", " ", " ", "\n", "  "]) for _ in range(n))


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_bytes(make_text(i, 2000).encode())
    return folder


@pytest.fixture
def tokenizer(msa, text, tmp_path):
    result = msa("train-tokenizer", text, tmp_path / "tokenizer", "--vocab", 400)
    assert result.returncode == 0, result.stderr
    assert b"400 tokens" in result.stderr and not result.stdout
    return tmp_path / "tokenizer"


def test_text_goes_there_and_back(msa, tokenizer):
    unseen = make_text(9, 500).encode() + b" quite other words: xylophone\x00"
    ids = msa("tokenize", tokenizer, stdin=unseen)
    assert ids.returncode == 0
    assert len(ids.stdout.split()) < len(unseen) / 2
    assert msa("tokenize", tokenizer, "--decode", stdin=ids.stdout).stdout == unseen


def test_training_again_gives_the_same_files(msa, text, tokenizer, tmp_path):
    assert msa("train-tokenizer", text, tmp_path / "again", "--vocab", 400).returncode == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tokenizer / name).read_bytes()


def test_tokenizers_library_agrees(msa, text, tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    reader = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [make_text(seed, 100) for seed in range(20, 60)]
    texts.append("a turn]~b]user[e~[<mm:think>x</mm:think>]<]minimax[>[")
    lines = "".join(json.dumps(t) + "\n" for t in texts).encode()
    result = msa("tokenize", tokenizer, "--jsonl", stdin=lines)
    ids = [json.loads(line) for line in result.stdout.splitlines()]
    assert ids == [reader.encode(t, add_special_tokens=False).ids for t in texts]


def test_tokenizers_library_learns_the_same(text, tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    ours = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    pattern = ours["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(ours["model"]["vocab"]), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    texts = [path.read_bytes().decode() for path in sorted(text.iterdir())]
    theirs.train_from_iterator(texts, trainer)
    theirs = json.loads(theirs.to_str())["model"]
    assert [list(merge) for merge in theirs["merges"]] == ours["model"]["merges"]
    assert theirs["vocab"] == ours["model"]["vocab"]


def test_shards_are_made_once(msa, text, tokenizer, tmp_path):
    out = tmp_path / "shards"
    first = msa("shards", tokenizer, text, out)
    assert first.returncode == 0, first.stderr
    assert b"3 documents" in first.stderr and not first.stdout
    names = sorted(path.name for path in out.iterdir())
    assert len(names) == 1 and names[0].startswith("tokens-00000-")
    before = (out / names[0]).stat()
    assert msa("shards", tokenizer, text, out).returncode == 0
    after = (out / names[0]).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (text / "3.txt").write_text("one more document", encoding="utf-8")
    changed = msa("shards", tokenizer, text, out)
    assert changed.returncode == 1 and b"a shard of other text" in changed.stderr


def test_bad_requests(fails, text, tokenizer, tmp_path):
    out = tmp_path / "out"
    fails(2, "--vocab", "train-tokenizer", text, out, "--vocab", 100)
    fails(2, "OUT is missing", "train-tokenizer", text)
    fails(1, "no further pair occurs twice", "train-tokenizer", text, out, "--vocab", 60000)
    fails(1, "nowhere", "train-tokenizer", tmp_path / "nowhere", out)
    fails(1, "must hold files named *.txt", "train-tokenizer", tokenizer, out)
    (text / "bad.txt").write_bytes(b"caf\xe9")
    fails(1, "bad.txt: train_tokenizer: byte 3", "train-tokenizer", text, out, "--vocab", 300)
    fails(1, "bad.txt: tokenizer_encode: byte 3", "shards", tokenizer, text, out)
    fails(1, "tokenizer.json", "shards", text, text, out)
    assert not out.exists() or not list(out.iterdir())
