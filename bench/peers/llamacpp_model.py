"""llama.cpp beside msa on one M3 folder: prefill and decode rates at growing contexts.

    python llamacpp_model.py MODEL MSA_PROGRAM LLAMA_BENCH [--to 8192] [--threads 2] [--gguf FILE]

Both read the same BF16 weights, both measure the last 512 tokens of prefill before a context and decoding
at it, MSA in both. LLAMA_BENCH comes from the source package of llama.cpp's Python binding, whose version
0.3.36 knows minimax-m3:

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36 && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release
    cmake --build build --target llama-bench

Run it on an idle machine: llama.cpp's threads wait by spinning, and a busy second core costs them far more
than their share. Python packages: gguf, numpy.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys

from m3_to_gguf import convert

CHUNK = 512


def run_llama(bench, gguf_file, threads, n_prompt, n_decoded, depth):
    """Tokens per second of n_prompt tokens, or of n_decoded single ones, behind depth tokens."""
    result = subprocess.run(
        [bench, "-m", gguf_file, "-t", str(threads), "-p", str(n_prompt), "-n", str(n_decoded),
         "-d", str(depth), "-b", str(CHUNK), "-ub", str(CHUNK), "-fa", "1", "-r", "3", "-o", "json"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(result.stdout)[0]["avg_ts"]


def run_msa(program, model, threads, to):
    result = subprocess.run(
        [program, "bench", "model", model, "--from", "1K", "--to", str(to), "--chunk", str(CHUNK),
         "--threads", str(threads)],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return list(csv.DictReader(result.stdout.splitlines()))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("program")
    parser.add_argument("llama_bench")
    parser.add_argument("--to", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", help="keep the converted model here")
    arguments = parser.parse_args()
    gguf_file = arguments.gguf or f"{arguments.model}.gguf"
    if not pathlib.Path(gguf_file).exists():
        convert(arguments.model, gguf_file)

    print("context,msa_prefill_tokens_s,llamacpp_prefill_tokens_s,msa_decode_tokens_s,"
          "llamacpp_decode_tokens_s")
    for row in run_msa(arguments.program, arguments.model, arguments.threads, arguments.to):
        context = int(row["context"])
        prefill = run_llama(arguments.llama_bench, gguf_file, arguments.threads, CHUNK, 0,
                            context - CHUNK)
        decode = run_llama(arguments.llama_bench, gguf_file, arguments.threads, 0, 32, context)
        print(f"{context},{row['prefill_tokens_s']},{prefill:.1f},{row['decode_tokens_s']},"
              f"{decode:.2f}", flush=True)
    if not arguments.gguf:
        pathlib.Path(gguf_file).unlink()


if __name__ == "__main__":
    sys.exit(main())
