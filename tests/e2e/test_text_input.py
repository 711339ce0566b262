"""msa tokenize and msa render: forms of input, messages, damaged files, numbers of random bits."""

import json
import random
import struct

import pytest

from conftest import SOURCE

BPE = SOURCE / "tests" / "golden" / "data" / "tokenizer" / "bpe-1k"


@pytest.fixture
def m3(tmp_path):
    """A folder with nothing but a config.json."""
    (tmp_path / "config.json").write_text('{"model_type": "minimax_m3_vl"}')
    return tmp_path


def test_whole_input(msa):
    text = "Line one.\n\n\u4f60\u597d \U0001f600\x00 ]~b]\n"
    ids = msa("tokenize", BPE, stdin=text.encode())
    assert ids.returncode == 0
    assert all(line.isdigit() for line in ids.stdout.splitlines())
    assert msa("tokenize", BPE, "--decode", stdin=ids.stdout).stdout.decode() == text
    assert msa("tokenize", BPE, stdin=b"").stdout == b""
    # Bytes stay bytes without --jsonl, and become U+FFFD with it.
    half = msa("tokenize", BPE, stdin="\u20ac".encode()).stdout.split()[0]
    assert msa("tokenize", BPE, "-d", stdin=half).stdout in (b"\xe2", b"\xe2\x82")
    result = msa("tokenize", BPE, "-d", "--jsonl", stdin=b"[" + half + b"]")
    assert json.loads(result.stdout) == "\ufffd"


def test_forms_of_json(msa):
    result = msa("tokenize", BPE, "--jsonl",
                 stdin=b' "\\u0061\\ud83d\\ude00\\/" \r\n"a\xf0\x9f\x98\x80/"')
    first, second = result.stdout.splitlines()
    assert first == second
    result = msa("tokenize", BPE, "--jsonl", "-d", stdin=b" [ 64 ,65]\n[]\n")
    assert result.stdout == b'"ab"\n""\n'


@pytest.mark.parametrize("line, message", [
    (b"", "expected a JSON string"), (b"a", "expected a JSON string"), (b'"a', "without end"),
    (b'"a" 1', "text behind"), (b'"\\x"', "unknown escape"), (b'"\\ud800"', "surrogate"),
    (b'"\\u12"', "unknown escape"), (b'"\t"', "control character"),
    (b'"a\xff"', "byte 1 = 0xff, must be valid UTF-8"), (b'"\\', "unknown escape"),
])
def test_bad_text_names_its_line(msa, line, message):
    result = msa("tokenize", BPE, "--jsonl", stdin=b'"a"\n' + line + b'\n"never reached"\n')
    assert result.returncode == 1
    assert result.stdout == b"[64]\n"
    assert result.stderr.decode().startswith("msa tokenize: line 2: ")
    assert message in result.stderr.decode()


@pytest.mark.parametrize("line, message", [
    (b"1", "JSON array"), (b"[1", "JSON array"), (b"[1,]", "expected an id"), (b"[,]", "an id"),
    (b"[1 2]", "expected ','"), (b"[-1]", "expected an id"), (b"[1.5]", "expected ','"),
    (b"[99999999999]", "expected an id"), (b"[64, 5000]", "ids[1] = 5000"), (b"[[1]]", "an id"),
])
def test_bad_ids_name_their_line(msa, line, message):
    result = msa("tokenize", BPE, "--jsonl", "--decode", stdin=b"[64]\n" + line)
    assert result.returncode == 1
    assert result.stdout == b'"a"\n'
    assert result.stderr.decode().startswith("msa tokenize: line 2: ")
    assert message in result.stderr.decode()


def test_bad_whole_input(fails):
    fails(1, "byte 2 = 0xff", "tokenize", BPE, stdin=b"ab\xff")
    fails(1, "decimal ids", "tokenize", BPE, "--decode", stdin=b"1 2,3")
    fails(1, "tokenizer.json", "tokenize", "no-such-folder")


def test_damaged_tokenizer_files(msa, tmp_path):
    """Whatever a file holds: a result or one line, never a crash."""
    good = (BPE / "tokenizer.json").read_bytes()
    rng = random.Random(1)
    path = tmp_path / "tokenizer.json"
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.random()
            if kind < 0.2:
                del data[at:]
            elif kind < 0.4:
                del data[at:at + rng.randint(1, 30)]
            elif kind < 0.6:
                data[at:at] = data[rng.randrange(len(data)):][:rng.randint(1, 30)]
            else:
                data[at] = rng.choice(b'{}[]",:0a\\ \xff\x00')
            if not data:
                break
        path.write_bytes(data)
        result = msa("tokenize", tmp_path, stdin=b"Some text, 123.\n")
        assert result.returncode in (0, 1)
        assert len(result.stderr.splitlines()) == result.returncode


def test_render(msa, m3):
    request = {"messages": [{"role": "user", "content": "Hi\u0000"}], "other": 1}
    result = msa("render", m3, stdin=json.dumps(request).encode())
    assert result.returncode == 0 and not result.stderr
    assert result.stdout.startswith(b"]~!b[]~b]system\n")
    assert result.stdout.endswith(b"]~b]user\nHi\0[e~[\n")


def test_render_error_is_the_templates_text(msa, m3):
    result = msa("render", m3, stdin=b'{"messages": [{"role": "tool", "content": "x"}]}')
    assert result.returncode == 1 and not result.stdout
    assert result.stderr == (b"Message has tool role, but there was no previous assistant message "
                             b"with a tool call!\n")


def test_render_refusals(fails, m3, tmp_path):
    fails(1, "chat request: line 1", "render", m3, stdin=b"{")
    fails(1, "chat request: ", "render", m3, stdin=b"")
    fails(1, "must be an array", "render", m3, stdin=b'{"messages": 1}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    fails(1, 'model_type = "llama"', "render", tmp_path, stdin=b'{"messages": []}')
    fails(1, "config.json", "render", tmp_path / "nothing")


def test_numbers_are_spelled_as_python_does(msa, m3):
    """Doubles of random bits, all powers of two, decimals around the changes of notation."""
    rng = random.Random(2)
    values = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(4000)]
    values += [2.0**n for n in range(-1074, 1024)]
    values += [float(f"{rng.randint(1, 9999)}e{n}") for n in range(-12, 24) for _ in range(20)]
    values += [round(rng.uniform(-100, 100), rng.randint(0, 6)) for _ in range(1000)]
    values = [v for v in values if v == v and abs(v) != float("inf")]
    spelled = ",".join(rng.choice([f"{v:.16e}", f"{v:.20e}", repr(v)]) for v in values)
    tool = f'{{"function": [{spelled}, {"7" * 5000}]}}'
    result = msa("render", m3, stdin=f'{{"messages": [], "tools": [{tool}]}}'.encode())
    assert result.returncode == 0, result.stderr
    written = result.stdout.decode().split("<tool>[")[1].split("]</tool>")[0].split(", ")
    assert written.pop() == "7" * 5000
    assert written == [repr(v) for v in values]
