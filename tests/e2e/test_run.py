"""msa run: text to stdout, talk to stderr, and every way in which it can go wrong."""

import json
import os
import re
import resource
import signal
import subprocess
import time

import pytest

from conftest import PROGRAM, TIMEOUT_SECONDS

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


def run_ok(msa, *words, **kwargs):
    result = msa("run", *words, **kwargs)
    assert result.returncode == 0, result.stderr.decode()
    return result


def test_run_separates_text_from_talk(msa, model):
    result = run_ok(msa, model, "-p", "Once", "-n", 8)
    talk = result.stderr.decode()
    assert result.stdout.endswith(b"\n") and result.stdout.decode()
    assert re.search(r"^prompt +\d+ tokens? in .*tokens/s$", talk, re.M)
    assert re.search(r"^generated +8 tokens in .*tokens/s; the first after ", talk, re.M)
    assert re.search(r"^blocks read +\d+ of \d+ visible \([\d.]+ %\)$", talk, re.M)
    assert re.search(r"^KV cache +.*B for \d+ tokens$", talk, re.M)
    assert "\x1b" not in talk and "\r" not in talk


def test_run_quiet_says_nothing(msa, model):
    result = run_ok(msa, model, "-p", "Once", "-n", 4, "-q")
    assert not result.stderr


def test_run_writes_whole_characters(msa, model):
    """A random model writes random bytes; what arrives is UTF-8 all the same."""
    for seed in range(3):
        result = run_ok(msa, model, "-p", "x", "-n", 40, "--seed", seed, "--ignore-stop", "-t", 1)
        result.stdout.decode("utf-8")


def test_run_is_the_same_for_the_same_seed(msa, model):
    words = [model, "-p", "Once", "-n", 12, "-t", 1, "--ignore-stop"]
    one = run_ok(msa, *words, "--seed", 1)
    assert run_ok(msa, *words, "--seed", 1).stdout == one.stdout
    assert run_ok(msa, *words, "--seed", 1, "--threads", 1, "--chunk", 7).stdout == one.stdout
    assert run_ok(msa, *words, "--seed", 2).stdout != one.stdout


def test_run_dense_is_sparse_while_every_block_is_selected(msa, model):
    words = [model, "-p", "Short.", "-n", 6, "-t", 0, "--ignore-stop", "--dtype", "f32"]
    words += ["--cache-dtype", "f32", "--index-dtype", "f32"]
    sparse = run_ok(msa, *words, "--attention", "sparse").stdout
    assert run_ok(msa, *words, "--attention", "dense").stdout == sparse


@pytest.mark.parametrize("dtype", ["bf16", "f32", "fp8"])
def test_run_takes_every_cache_dtype(msa, model, dtype, tmp_path):
    stats = tmp_path / "stats.json"
    words = ["--cache-dtype", dtype, "--index-dtype", dtype, "--stats", stats]
    run_ok(msa, model, "-p", TEXT, "-n", 2, *words)
    info = json.loads(msa("inspect", model, "--json").stdout)
    data = json.loads(stats.read_text())
    per_token = info["cache_bytes_per_token"][dtype]
    block = info["block_size"]
    tokens = data["prompt_tokens"] + data["generated_tokens"]
    assert data["kv_bytes"] == -(-tokens // block) * block * per_token


def test_run_stats_count_blocks(msa, model, tmp_path):
    stats = tmp_path / "stats.json"
    run_ok(msa, model, "-p", TEXT, "-n", 4, "--ignore-stop", "--stats", stats)
    sparse = json.loads(stats.read_text())
    assert sparse["generated_tokens"] == 4 and sparse["reused_tokens"] == 0
    assert 0 < sparse["blocks_read"] < sparse["blocks_visible"]
    run_ok(
        msa, model, "-p", TEXT, "-n", 4, "--ignore-stop", "--stats", stats, "--attention", "dense"
    )
    dense = json.loads(stats.read_text())
    assert dense["blocks_read"] == dense["blocks_visible"] == sparse["blocks_visible"]


def test_run_reads_files_and_standard_input(msa, model, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(TEXT)
    words = ["-n", 6, "-t", 0]
    expected = run_ok(msa, model, "-p", TEXT, *words).stdout
    assert run_ok(msa, model, "-f", file, *words).stdout == expected
    assert run_ok(msa, model, "-f", "-", *words, stdin=TEXT.encode()).stdout == expected
    joined = run_ok(msa, model, "-f", file, "-p", " And then", *words).stdout
    assert joined == run_ok(msa, model, "-p", TEXT + " And then", *words).stdout


def test_run_chat_uses_the_prompt_of_render(msa, model, tmp_path):
    stats = tmp_path / "stats.json"
    words = ["-c", "--system", "Be brief.", "--thinking", "disabled", "-n", 1, "--stats", stats]
    run_ok(msa, model, "-p", 'Say "hi".', *words)
    request = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": 'Say "hi".'},
        ],
        "options": {"add_generation_prompt": True, "thinking_mode": "disabled"},
    }
    prompt = msa("render", model, stdin=json.dumps(request).encode()).stdout
    ids = msa("tokenize", model, stdin=prompt).stdout.split()
    assert json.loads(stats.read_text())["prompt_tokens"] == len(ids)


def test_run_session_is_not_read_again(msa, model, tmp_path):
    session, stats = tmp_path / "a.msa", tmp_path / "stats.json"
    words = [model, "-t", 0, "--ignore-stop", "-q", "--session", session, "--stats", stats]
    run_ok(msa, *words, "-p", TEXT, "-n", 0)
    run_ok(msa, *words, "-p", TEXT + "Then", "-n", 10)
    data = json.loads(stats.read_text())
    assert data["reused_tokens"] > 0.9 * data["prompt_tokens"]
    assert data["prompt_tokens_per_second"] > 0


def test_run_session_continues_exactly(msa, model, tmp_path):
    words = [model, "-t", 1, "--seed", 3, "--ignore-stop", "-q"]
    whole = run_ok(msa, *words, "-p", TEXT, "-n", 20, "--session", tmp_path / "whole").stdout
    parts = tmp_path / "parts"
    first = run_ok(msa, *words, "-p", TEXT, "-n", 8, "--session", parts).stdout
    second = run_ok(msa, *words, "-n", 12, "--session", parts).stdout
    if "\ufffd" not in whole.decode():  # a character cut at the seam shows differently
        assert first[:-1] + second == whole
    assert parts.read_bytes() == (tmp_path / "whole").read_bytes()


def test_run_progress_is_plain_lines_in_a_pipe(msa, model):
    talk = run_ok(msa, model, "-p", TEXT, "-n", 1).stderr.decode()
    assert re.search(r"^reading 100 %  [\d,]+ of [\d,]+ tokens  [\d,]+/s$", talk, re.M)


def test_run_progress_is_a_bar_on_a_terminal(terminal, model):
    screen = terminal("run", model, "-p", TEXT[:1000], "-n", 2, "--chunk", 1, "--ignore-stop")
    screen.wait_for("\r")
    screen.wait_for("left")
    screen.wait_for("generated")
    assert screen.finish() == 0


def test_run_shows_control_characters_on_a_terminal(terminal, model):
    """The text of a random model holds escape bytes; none may reach the terminal."""
    screen = terminal("run", model, "-p", "x", "-n", 300, "-t", 5, "--ignore-stop")
    seen = screen.wait_for("generated")
    text = re.sub(rb"\r[^\n]*\x1b\[K", b"", seen)  # the progress bar's own
    assert b"\x1b" not in text and b"\x07" not in text and b"\x08" not in text
    assert re.search(rb"<[0-9A-F]{2}>", text)


def test_run_interrupted_prints_the_numbers(model):
    process = subprocess.Popen(
        [PROGRAM, "run", model, "-p", "x", "-n", "60000", "--ignore-stop"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130
    assert b"interrupted\n" in talk and b"generated" in talk


def test_run_interrupted_while_reading(model, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text(TEXT * 20)
    process = subprocess.Popen(
        [PROGRAM, "run", model, "-f", file, "-n", "5", "--chunk", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    text, talk = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130 and not text
    assert b"prompt" in talk


# ---- bad input --------------------------------------------------------------------------------


def test_run_without_model_or_prompt(msa, model):
    result = msa("run")
    assert result.returncode == 2 and b"MODEL is missing" in result.stderr
    result = msa("run", model)
    assert result.returncode == 2 and b"give -p TEXT or -f FILE" in result.stderr


@pytest.mark.parametrize(
    "words, text",
    [
        (["-n", "x"], '--n-tokens = "x", must be a whole number from 0'),
        (["-n", "-1"], '--n-tokens = "-1", must be'),
        (["-n"], "--n-tokens needs a value"),
        (["-t", "hot"], '--temperature = "hot", must be a number from 0 to 100'),
        (["--top-p", "1.5"], '--top-p = "1.5", must be a number from 0 to 1'),
        (["--attention", "flash"], '--attention = "flash", must be one of sparse|dense'),
        (["--dtype=fp4"], "must be one of bf16|f32|f16"),
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--quiet=yes"], "--quiet takes no value"),
        (["--system", "x"], "need --chat"),
    ],
)
def test_run_rejects_wrong_options(fails, model, words, text):
    message = fails(2, text, "run", model, "-p", "x", *words)
    assert message.splitlines()[1] == "Try 'msa run --help'."


def test_run_rejects_bad_prompts(fails, model, tmp_path):
    fails(1, "the prompt is empty", "run", model, "-p", "")
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("")
    binary.write_bytes(b"good \xff\xfe bad")
    fails(1, f"{empty}: the prompt is empty", "run", model, "-f", empty)
    fails(1, f"{binary}: ", "run", model, "-f", binary)
    fails(1, "No such file", "run", model, "-f", tmp_path / "missing")
    fails(1, "Is a directory", "run", model, "-f", tmp_path)
    fails(1, "the prompt: ", "run", model, "-f", "-", stdin=b"\xff")


def test_run_rejects_a_missing_model(fails, tmp_path):
    fails(1, "config.json: No such file", "run", tmp_path / "none", "-p", "x")


def test_run_rejects_a_prompt_beyond_the_context(fails, msa, model):
    fails(1, "--ctx 16 has no room", "run", model, "-p", TEXT, "--ctx", 16)
    longest = json.loads(msa("inspect", model, "--json").stdout)["max_positions"]
    fails(1, f"at most {longest}", "run", model, "-p", "x", "--ctx", longest + 1)


def test_run_stops_where_the_context_is_full(msa, model):
    result = run_ok(msa, model, "-p", "x", "-n", 100, "--ctx", 20, "--ignore-stop")
    assert b"the context of 20 tokens is full\n" in result.stderr
    assert b"generated    19 tokens" in result.stderr


def test_run_refuses_what_memory_cannot_hold(msa, model):
    """With little address space the cache is refused before the work, and a size that fits is named."""
    longest = json.loads(msa("inspect", model, "--json").stdout)["max_positions"]

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (64 << 20, 64 << 20))

    if os.environ.get("MSA_SANITIZE"):
        pytest.skip("a sanitizer needs the address space")
    result = msa("run", model, "-p", "x", "--ctx", longest, preexec_fn=limit)
    assert result.returncode == 1, result.stderr
    assert b"msa run: " in result.stderr


def test_run_to_a_full_disk(msa, model):
    with open("/dev/full", "wb") as full:
        result = msa("run", model, "-p", "x", "-n", 50, "--ignore-stop", stdout=full)
    assert result.returncode == 1
    assert b"writing the output: No space left on device" in result.stderr


def test_run_to_a_reader_that_leaves(msa, model):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        result = msa("run", model, "-p", "x", "-n", 60000, "--ignore-stop", "-q", stdout=pipe)
    assert result.returncode == 1 and not result.stderr


def test_run_names_the_file_it_cannot_write(msa, model, tmp_path):
    for option in ("--stats", "--session"):
        target = tmp_path / "no" / "such" / "folder"
        result = msa("run", model, "-p", "x", "-n", 1, "-q", option, target)
        assert result.returncode == 1 and str(target) in result.stderr.decode()


def test_run_rejects_a_damaged_session(msa, fails, model, tmp_path):
    session = tmp_path / "session"
    run_ok(msa, model, "-p", TEXT, "-n", 2, "--session", session)
    data = session.read_bytes()
    for name, bad in (("cut", data[: len(data) // 2]), ("empty", b""), ("noise", b"\x00" * 4096)):
        file = tmp_path / name
        file.write_bytes(bad)
        assert str(file) in fails(1, "msa run", "run", model, "-p", TEXT, "--session", file)
    fails(1, "no such session", "run", model, "--session", tmp_path / "none")
    message = fails(1, "dtype", "run", model, "-p", TEXT, "--session", session, "--cache-dtype", "f32")
    assert str(session) in message
