"""--device: where the work is done, and what is said where it cannot be done there."""

import os

import pytest

from conftest import needs_gpu, needs_no_gpu, run_msa

COMMANDS = {
    "run": ["-p", "hello"],
    "chat": [],
    "logits": ["--tokens", "ids", "--out", "out"],
    "bench model": [],
    "inspect": [],
}


def test_doctor_has_a_line_about_gpus(msa):
    text = msa("doctor").stdout.decode()
    lines = text.split("\nGPU\n")[1].splitlines()
    assert lines[0].split()[0] in ("none", "cuda:0")
    assert len(lines[0].split()) > 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_device_is_named(fails, model, command):
    for word in ("gpu", "cuda:", "cuda:x", "cuda0", "cuda:1x", "cuda:99999"):
        words = [*command.split(), model, *COMMANDS[command], "--device", word]
        fails(2, f'--device = "{word}", must be cpu, cuda or cuda:N', *words)


@needs_no_gpu
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu_the_next_step_is_named(fails, model, command):
    words = [*command.split(), model, *COMMANDS[command], "--device", "cuda"]
    message = fails(1, "backend = cuda, not available: ", *words)
    assert "without --device the processor does the work" in message


@needs_no_gpu
def test_the_environment_names_a_device_too(fails, model):
    environment = dict(os.environ, MSA_BACKEND="cuda")
    fails(1, "backend = cuda, not available: ", "run", model, "-p", "hello", env=environment)
    result = run_msa("run", model, "-p", "a", "-n", 1, "--device", "cpu", env=environment)
    assert result.returncode == 0, result.stderr.decode()


@needs_gpu
def test_a_gpu_that_is_not_there(fails, model):
    fails(1, "device = 77, must be 0..", "run", model, "-p", "hello", "--device", "cuda:77")


@needs_gpu
def test_a_session_moves_between_processor_and_gpu(msa, model, tmp_path):
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        session = tmp_path / f"{first}.session"
        words = ["run", model, "--session", session, "--ignore-stop", "-n", 8, "--dtype", "f32"]
        words += ["--cache-dtype", "f32", "--index-dtype", "f32", "--temperature", 0]
        begun = msa(*words, "-p", "It was a dark night", "--device", first)
        assert begun.returncode == 0, begun.stderr.decode()
        resumed = msa(*words, "--device", second)
        assert resumed.returncode == 0, resumed.stderr.decode()
        assert resumed.stdout

