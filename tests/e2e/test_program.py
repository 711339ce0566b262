"""The program as a whole: help, wrong usage, exit statuses, where output goes, generated pages."""

import os
import re
import subprocess

import pytest

from conftest import PROGRAM, SOURCE, run_msa


def command_names():
    """Commands as `msa --help` lists them."""
    text = run_msa("--help").stdout.decode()
    block = text.split("Commands:\n")[1].split("\nOptions:")[0]
    return re.findall(r"^  ([a-z]+(?:-[a-z]+| [a-z]+)?)(?:  |$)", block, re.M)


COMMANDS = command_names()


def options_of(command):
    text = run_msa(*command.split(), "--help").stdout.decode()
    return re.findall(r"^ +(?:-\w, )?--([a-z0-9-]+)", text, re.M)


def test_help_lists_commands(msa):
    result = msa("--help")
    assert result.returncode == 0 and not result.stderr
    assert "doctor" in COMMANDS


def test_no_command_is_wrong_usage(fails, msa):
    result = msa()
    assert result.returncode == 2 and not result.stdout
    assert b"msa --help" in result.stderr


def test_unknown_command_suggests(fails):
    fails(2, 'did you mean "doctor"?', "docter")
    fails(2, 'unknown command "zzz"', "zzz")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help_is_complete(msa, command):
    result = msa(*command.split(), "--help")
    text = result.stdout.decode()
    assert result.returncode == 0 and not result.stderr
    assert f"Usage: msa {command} [OPTION]..." in text
    assert "Exit status:" in text and "--help" in text
    assert all(len(line) <= 80 for line in text.splitlines()), text
    assert msa("help", *command.split()).stdout == result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_command_rejects_unknown_option(msa, command):
    result = msa(*command.split(), "--no-such-option")
    assert result.returncode == 2 and not result.stdout
    lines = result.stderr.decode().splitlines()
    assert lines[0] == f"msa {command}: unknown option --no-such-option"
    assert lines[1] == f"Try 'msa {command} --help'."


def test_misspelt_option_suggests(fails):
    fails(2, "did you mean --help?", "doctor", "--hlep")


def test_version(msa):
    assert re.fullmatch(rb"msa \d+\.\d+\.\d+\n", msa("--version").stdout)


def test_man_page_names_every_option(msa):
    page = msa("--man").stdout.decode().replace("\\-", "-")
    for command in COMMANDS:
        assert f'.SS "msa {command} ' in page
        for name in options_of(command):
            assert f"--{name}" in page, f"{command} --{name}"


def test_man_page_is_clean_roff(msa, tmp_path):
    page = tmp_path / "msa.1"
    page.write_bytes(msa("--man").stdout)
    try:
        result = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", str(page)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("groff is not installed")
    assert result.returncode == 0 and not result.stderr, result.stderr.decode()


def complete_in_bash(script, *words):
    """What bash would offer for the last word."""
    quoted = " ".join(f"'{w}'" for w in words)
    commands = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _msa; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=True)
    assert not result.stderr
    return result.stdout.split()


def test_bash_completion_offers_commands_and_options(msa, tmp_path):
    script = tmp_path / "msa.bash"
    script.write_bytes(msa("--completion", "bash").stdout)
    assert set(complete_in_bash(script, "msa", "")) >= {c.split()[0] for c in COMMANDS}
    assert complete_in_bash(script, "msa", "docto") == ["doctor"]
    for command in COMMANDS:
        offered = complete_in_bash(script, "msa", *command.split(), "--")
        assert set(offered) >= {f"--{name}" for name in options_of(command)}, command


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_parses(msa, tmp_path, shell):
    script = tmp_path / f"msa.{shell}"
    script.write_bytes(msa("--completion", shell).stdout)
    try:
        result = subprocess.run([shell, "-n", str(script)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"{shell} is not installed")
    assert result.returncode == 0 and not result.stderr, result.stderr.decode()


def test_completion_of_unknown_shell(fails):
    fails(2, "bash, zsh or fish", "--completion", "csh")


def test_full_disk_is_a_failure(msa):
    with open("/dev/full", "wb") as full:
        result = msa("--help", stdout=full)
    assert result.returncode == 1
    assert result.stderr == b"msa: writing the output: No space left on device\n"


def test_closed_pipe_is_quiet(msa):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        result = msa("--help", stdout=pipe)
    assert result.returncode == 1 and not result.stderr


def test_doctor_reports_to_stdout(msa):
    result = msa("doctor")
    text = result.stdout.decode()
    assert result.returncode == 0 and not result.stderr
    for heading in ("Processor", "Memory", "Optional parts", "Environment"):
        assert f"\n{heading}\n" in text
    assert re.search(r"^  in use +\w+, \d+ threads?$", text, re.M)


def test_doctor_lists_every_documented_variable(msa):
    """env.c, docs/env.md and doctor know the same variables."""
    pattern = re.compile(r"\bMSA_[A-Z_]+\b")
    read = set(re.findall(r'"(MSA_[A-Z_]+)"', (SOURCE / "src/base/env.c").read_text()))
    documented = set(pattern.findall((SOURCE / "docs/env.md").read_text()))
    shown = set(pattern.findall(msa("doctor").stdout.decode()))
    assert read == documented == shown


def test_doctor_fails_on_a_wrong_environment(msa):
    result = msa("doctor", env=dict(os.environ, MSA_THREADS="many"))
    assert result.returncode == 1
    assert b"MSA_THREADS = many, must be 1..1024" in result.stderr


def test_program_sees_only_public_symbols():
    """The program links the libraries as anybody else does."""
    result = subprocess.run(["nm", "-u", PROGRAM], capture_output=True, text=True, check=True)
    ours = [line.split()[-1] for line in result.stdout.splitlines() if "msa_" in line]
    assert ours and not [name for name in ours if name.startswith("msa__")]
