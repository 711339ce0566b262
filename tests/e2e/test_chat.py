"""msa chat on a pseudo-terminal, as a person types, and through a pipe."""

import json
import pathlib
import re

import pytest

PROMPT = "> "
ANSWER = ["-n", 12, "--ctx", 4096]


def begin(terminal, model, *words):
    screen = terminal("chat", model, *ANSWER, *words)
    screen.wait_for("/help lists commands")
    screen.wait_for(PROMPT)
    return screen


def test_chat_answers_and_leaves(terminal, model):
    screen = begin(terminal, model)
    screen.type("Hello\n")
    screen.wait_for("Hello")
    screen.wait_for(PROMPT)
    screen.type("/quit\n")
    assert screen.finish() == 0


def test_chat_ends_at_the_end_of_input(terminal, model):
    screen = begin(terminal, model)
    screen.type(b"\x04")
    assert screen.finish() == 0


@pytest.fixture
def endless_model(model, tmp_path):
    """The same model with a stop token that it does not have."""
    for file in pathlib.Path(model).iterdir():
        (tmp_path / file.name).symlink_to(file.resolve())
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "eos_token_id": 1000000}')
    return tmp_path


def test_chat_interrupt_stops_the_answer_not_the_program(terminal, endless_model):
    screen = terminal("chat", endless_model, "-n", 100000, "--ctx", 8000, "--thinking", "disabled")
    screen.wait_for(PROMPT)
    screen.type("Tell me a long story\n")
    screen.wait_for("story")
    screen.wait_for("\n")
    screen.wait_for("<")  # the answer runs
    screen.type(b"\x03")
    screen.wait_for("(stopped)")
    screen.wait_for(PROMPT)
    screen.type("/stats\n")
    screen.wait_for("generated")
    screen.wait_for(PROMPT)
    screen.type("/quit\n")
    assert screen.finish() == 0


def test_chat_interrupt_at_the_prompt_drops_the_line(terminal, model):
    screen = begin(terminal, model)
    screen.type("half a thou")
    screen.wait_for("thou")
    screen.type(b"\x03")
    screen.wait_for("(Ctrl-D or /quit leaves)")
    screen.wait_for(PROMPT)
    screen.type("/stats\n")
    screen.wait_for("prompt")
    screen.wait_for("0 tokens")
    screen.type("/quit\n")
    assert screen.finish() == 0


def test_chat_history_recalls_the_last_line(terminal, model, msa):
    if b"libedit" not in msa("doctor").stdout:
        pytest.skip("built without libedit")
    screen = begin(terminal, model)
    screen.type("/nonsense\n")
    screen.wait_for("unknown: /nonsense")
    screen.wait_for(PROMPT)
    screen.type(b"\x1b[A\n")
    screen.wait_for("unknown: /nonsense")
    screen.type("/quit\n")
    assert screen.finish() == 0


def pipe(msa, model, lines, *words):
    return msa("chat", model, *ANSWER, *words, stdin="".join(f"{x}\n" for x in lines).encode())


def test_chat_through_a_pipe_writes_answers_only(msa, model):
    result = pipe(msa, model, ["Hello", "/stats", "Again"])
    talk = result.stderr.decode()
    assert result.returncode == 0
    assert "> " not in talk and "\x1b" not in talk
    assert "blocks read" in talk and b"blocks read" not in result.stdout
    assert result.stdout.decode("utf-8").count("\n") >= 2


def test_chat_reads_only_what_is_new(msa, model):
    talk = pipe(msa, model, ["Hello", "And now something else", "/stats"]).stderr.decode()
    assert re.search(r"^prompt .*; [\d,]+ more were in the session$", talk, re.M)


def test_chat_help_and_wrong_commands(msa, model):
    talk = pipe(msa, model, ["/help", "/dance", "/save", "/load"]).stderr.decode()
    for word in ("/stats", "/save FILE", "/load FILE", "/clear", "/quit"):
        assert word in talk
    assert "unknown: /dance" in talk
    assert "/save needs a file name" in talk and "/load needs a file name" in talk


def test_chat_save_and_load_continue_the_conversation(msa, model, tmp_path):
    file = tmp_path / "talk.json"
    first = pipe(msa, model, ["Remember: blue.", f"/save {file}", "What colour?"])
    assert first.returncode == 0
    messages = json.loads(file.read_text())
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "Remember: blue."
    second = pipe(msa, model, [f"/load {file}", "What colour?", "/stats"])
    assert first.stdout.endswith(second.stdout)
    assert "more were in the session" in second.stderr.decode()


def test_chat_load_of_nonsense_keeps_the_conversation(msa, model, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('[{"role": 3}]')
    result = pipe(msa, model, ["Hello", f"/load {bad}", f"/load {tmp_path / 'none'}", "/stats"])
    talk = result.stderr.decode()
    assert result.returncode == 0
    assert talk.count("msa chat: ") == 2 and "No such file" in talk


def test_chat_context_overflow_says_what_to_do(msa, model):
    result = msa("chat", model, "--ctx", 300, "-n", 4, stdin=("word " * 400 + "\nHi\n").encode())
    assert result.returncode == 0
    assert b"the context holds 300; /clear begins a new one" in result.stderr


def test_chat_line_that_is_not_utf8(msa, model):
    result = msa("chat", model, *ANSWER, stdin=b"\xff\xfe\nHello\n")
    assert result.returncode == 0
    assert result.stderr.count(b"msa chat: ") == 1 and result.stdout


def test_chat_clear_forgets(msa, model, tmp_path):
    file = tmp_path / "talk.json"
    pipe(msa, model, ["One", "/clear", "Two", f"/save {file}"])
    messages = json.loads(file.read_text())
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "Two"
