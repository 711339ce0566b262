"""What ptxas said about the CUDA kernels: python3 check_ptxas.py [BUILD_DIR]

Reads the logs that the build keeps beside the objects of libmsa_cuda, prints registers and shared memory
of every kernel that carries a speed claim (select, attend, dense attend), and fails when one of them
spills registers or has its wgmma instructions serialised (ptxas advisories C75xx that say so).
"""

import pathlib
import re
import subprocess
import sys

HEADLINE = re.compile(r"(cuda_)?(select|attend|dense|decode|scan|index8)(?!\w*(generic|backward))")
COMPILED = re.compile(r"Compiling entry function '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SERIAL = re.compile(r"\(C75\d\d\).*serializ.*")


def demangle(names):
    done = subprocess.run(["c++filt", "-p", *names], capture_output=True, text=True)
    return done.stdout.split("\n") if done.returncode == 0 else names


def read_log(path):
    """Rows (kernel, registers, spilled bytes) and advisories of one log."""
    rows, advisories, kernel, spilled = [], [], None, 0
    for line in path.read_text().splitlines():
        if match := COMPILED.search(line):
            kernel, spilled = match[1], 0
        elif match := SPILLS.search(line):
            spilled = int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and kernel:
            rows.append((kernel, int(match[1]), spilled))
            kernel = None
        if match := SERIAL.search(line):
            advisories.append(match[0])
    return rows, advisories


def main(arguments):
    build = pathlib.Path(arguments[0] if arguments else "build/release")
    logs = sorted(build.glob("src/backend/cuda/CMakeFiles/msa_cuda.dir/**/*.o.log"))
    if not logs:
        print(f"skipped: no logs of CUDA objects in {build}")
        return 77
    n_kernels = n_wrong = 0
    for path in logs:
        rows, advisories = read_log(path)
        headline = bool(HEADLINE.match(path.name))
        wrong = [row for row in rows if row[2]]
        n_kernels += len(rows)
        names = demangle([row[0] for row in rows])
        for (_, registers, spilled), name in zip(rows, names):
            if headline or spilled:
                print(f"{path.name[:-6]:24} {registers:4} registers {spilled:5} bytes spilled  {name}")
        for text in sorted(set(advisories)):
            print(f"{path.name[:-6]:24} {text}")
        if headline:
            n_wrong += len(wrong) + len(advisories)
    print(f"check_ptxas: {n_kernels} kernels in {len(logs)} files, {n_wrong} headline kernels spill or serialise")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
