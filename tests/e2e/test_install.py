"""`make install`: the staged tree is complete, runs where it lies, and programs build against it."""

import os
import subprocess

import pytest

from conftest import SOURCE

USER_PROGRAM = r"""
#include "msa/msa.h"
#include <stdio.h>
int main(void)
{
    msa_context_args args;
    msa_context *ctx = NULL;
    msa_context_args_init(&args);
    if (msa_context_create(&ctx, &args) != MSA_OK) return 1;
    printf("%s\n", msa_context_backend(ctx));
    msa_context_destroy(ctx);
    return 0;
}
"""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    stage = tmp_path_factory.mktemp("stage")
    subprocess.run(
        ["cmake", "--install", os.environ["MSA_BUILD_DIR"], "--prefix", "/usr"],
        env=dict(os.environ, DESTDIR=str(stage)),
        check=True,
        capture_output=True,
    )
    return stage / "usr"


def test_tree_is_complete(prefix):
    names = {p.relative_to(prefix).as_posix() for p in prefix.rglob("*") if not p.is_dir()}
    assert {"bin/msa", "share/man/man1/msa.1", "share/bash-completion/completions/msa"} <= names
    headers = {f"include/msa/{p.name}" for p in (SOURCE / "include/msa").glob("*.h")}
    assert headers <= names
    libraries = [n for n in names if n.endswith((".so", ".pc"))]
    assert {os.path.basename(n) for n in libraries} == {
        "libmsa.so",
        "libmsa_engine.so",
        "msa.pc",
        "msa-engine.pc",
    }


def test_installed_program_runs(prefix):
    result = subprocess.run([prefix / "bin/msa", "--version"], capture_output=True, check=True)
    assert result.stdout.startswith(b"msa ")


@pytest.mark.parametrize("package", ["msa", "msa-engine"])
def test_programs_build_against_it(prefix, tmp_path, package):
    source, program = tmp_path / "user.c", tmp_path / "user"
    source.write_text(USER_PROGRAM)
    folder = next(prefix.rglob("pkgconfig"))
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", package],
        env=dict(os.environ, PKG_CONFIG_PATH=str(folder)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    library = next(flag[2:] for flag in flags if flag.startswith("-L"))
    command = ["gcc", "-std=c11", "-Wall", "-Werror", str(source), "-o", str(program), *flags]
    if os.environ.get("MSA_SANITIZE"):
        command.append("-fsanitize=" + os.environ["MSA_SANITIZE"])
    subprocess.run([*command, f"-Wl,-rpath,{library}"], check=True)
    result = subprocess.run([program], capture_output=True, check=True)
    assert result.stdout == b"cpu\n"
