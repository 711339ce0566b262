"""Token ids of random texts, against Hugging Face tokenizers (PyPI; skipped without it).

The tokenizers are variations of a golden one: other pre-tokenizers, a normalizer, added tokens with
random flags. Texts are drawn from a seed. The engines' Unicode tables differ in what was assigned last:
characters are those of this Python's version, and with a normalizer, whose tables in the reference are
older, those of Unicode 3.2.
"""

import copy
import json
import os
import random
import unicodedata

import pytest

from conftest import SOURCE

tokenizers = pytest.importorskip("tokenizers")

N_TEXTS = int(os.environ.get("MSA_FUZZ_TEXTS", "300"))
GOLDEN = os.path.join(SOURCE, "tests/golden/data/tokenizer/bpe-1k/tokenizer.json")



class Characters:
    """Characters of one Unicode version by kind."""

    def __init__(self, ucd):
        self.all = [chr(c) for c in range(0x110000)
                    if ucd.category(chr(c)) not in ("Cn", "Cs", "Co")]
        self.spaces = [c for c in self.all if c.isspace()] + ["\u180e", "\u200b", "\ufeff"]
        self.marks = [c for c in self.all if ucd.combining(c)]
        self.cased = [c for c in self.all if ucd.category(c) in ("Lu", "Ll", "Lt")]


NEW, OLD = Characters(unicodedata), Characters(unicodedata.ucd_3_2_0)
WORDS = """the The THE 's 'S 't 're 've 'm 'll 'd 'LL '\u017f don't it's caf\u00e9 stra\u00dfe na\u00efve
    123 12345 3.14 1e10 -- ... !!! // /* #! {} [] () <> => == @#$ \u4f60\u597d \u3053\u3093\u306b
    \uc548\ub155 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0939\u093f\u0928\u094d\u0926\u0940
    \ud83d\ude00 ]~b] [e~[ <mm:think> </mm:think> ]<]minimax[>[ <mm: think> <a> <ab> <abc>""".encode(
        "utf-16", "surrogatepass").decode("utf-16").split()


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


PRE_TOKENIZERS = {
    "golden": None,
    "gpt2": byte_level(regex=True),
    "gpt2-prefix": byte_level(prefix=True, regex=True),
    "bare": byte_level(),
    "qwen": sequence(split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level()),
    "llama3": sequence(split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level()),
    "deepseek": sequence(
        split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        split(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
              r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level()),
    "words": sequence(split(r"\w+|\W"), byte_level()),
    "scripts": sequence(split(r"[\p{Han}]+|\p{Greek}+|\P{Latin}|(?<=a)b*?|\u00e9\x{e8}?"),
                        byte_level(prefix=True)),
    "literal": sequence({"type": "Split", "pattern": {"String": "e."}, "behavior": "Isolated",
                         "invert": False}, byte_level(regex=True)),
}


def random_text(rng, characters):
    pieces = []
    for _ in range(rng.randint(0, 30)):
        kind = rng.random()
        if kind < 0.35:
            pieces.append(rng.choice(WORDS))
        elif kind < 0.5:
            pieces.append(" " * rng.randint(1, 4))
        elif kind < 0.6:
            pieces.append(rng.choice(characters.spaces) * rng.randint(1, 3))
        elif kind < 0.65:
            pieces.append(rng.choice("\r\n\t/") * rng.randint(1, 3))
        elif kind < 0.75:
            pieces.append("".join(rng.choice(characters.cased) for _ in range(rng.randint(1, 4))))
        elif kind < 0.8:
            pieces.append("".join(rng.choice(characters.marks) for _ in range(rng.randint(1, 5))))
        elif kind < 0.9:
            pieces.append(chr(rng.randint(1, 0x7f)))
        elif kind < 0.92:
            pieces.append(rng.choice("aeo\u00e9 ") * rng.randint(40, 120))
        else:
            pieces.append("".join(rng.choice(characters.all) for _ in range(rng.randint(1, 6))))
    return "".join(pieces)


def added_tokens(rng, first_id):
    contents = ["<a>", "<ab>", "<abc>", "ab", "the", " x", "\u00e9t", "<mm: ", "'s", "\n\n", "1"]
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = []
    for i, content in enumerate(rng.sample(contents, rng.randint(1, len(contents)))):
        token = {"id": first_id + i, "content": content}
        token.update({flag: rng.random() < 0.4 for flag in flags})
        tokens.append(token)
    # A token that starts inside of what another's rstrip took confuses the reference.
    spaced = any(token["content"][0].isspace() for token in tokens)
    for token in tokens:
        token["rstrip"] &= not spaced
    return tokens


def variation(rng, name):
    with open(GOLDEN, encoding="utf-8") as file:
        parts = json.load(file)
    if PRE_TOKENIZERS[name]:
        parts["pre_tokenizer"] = copy.deepcopy(PRE_TOKENIZERS[name])
    plain = []
    if rng.random() < 0.5:
        parts["normalizer"] = {"type": "NFC"}
        plain = ["\u00e9t"]
    if rng.random() < 0.7:
        vocab = parts["model"]["vocab"]
        added = [t for t in added_tokens(rng, len(vocab)) if t["content"] not in vocab]
        for token in added:
            token["normalized"] &= token["content"] not in plain
        kept = parts["added_tokens"][:rng.randint(0, 8)]
        for i, token in enumerate(kept + added):
            token["id"] = len(vocab) + i
        parts["added_tokens"] = kept + added
    parts["model"]["ignore_merges"] = rng.random() < 0.3 or name == "llama3"
    if name == "llama3":  # nothing is added at the ends, whatever the file says
        first = parts["added_tokens"][0] if parts["added_tokens"] else {"id": 0, "content": "!"}
        parts["post_processor"] = {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": first["content"], "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {first["content"]: {"id": first["content"], "ids": [first["id"]],
                                                   "tokens": [first["content"]]}}}]}
    return parts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_same_ids(msa, tmp_path, name, seed):
    rng = random.Random(f"{name} {seed}")
    parts = variation(rng, name)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(parts, ensure_ascii=False), encoding="utf-8")
    reference = tokenizers.Tokenizer.from_file(str(path))

    characters = OLD if parts["normalizer"] else NEW
    texts = [random_text(rng, characters) for _ in range(N_TEXTS)]
    lines = "".join(json.dumps(text, ensure_ascii=rng.random() < 0.5) + "\n" for text in texts)
    result = msa("tokenize", str(tmp_path), "--jsonl", stdin=lines.encode())
    assert result.returncode == 0, result.stderr.decode()
    ids = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert len(ids) == len(texts)
    for text, mine in zip(texts, ids):
        expected = reference.encode(text, add_special_tokens=False).ids
        assert mine == expected, f"{text!r}: {ascii(text)}"

    # Whole sequences, and pieces that cut characters.
    sequences = ids + [s[rng.randint(0, len(s)):][:rng.randint(0, 9)] for s in ids]
    lines = "".join(json.dumps(s) + "\n" for s in sequences)
    result = msa("tokenize", str(tmp_path), "--jsonl", "--decode", stdin=lines.encode())
    assert result.returncode == 0, result.stderr.decode()
    decoded = [json.loads(line) for line in result.stdout.decode().split("\n")[:-1]]
    for sequence_ids, mine in zip(sequences, decoded):
        expected = reference.decode(sequence_ids, skip_special_tokens=False)
        assert mine == expected, sequence_ids
