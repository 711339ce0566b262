"""Add up test reports: python3 count_tests.py [NAME=REPORT.xml]...

Reads the JUnit files that ctest writes, counts the tests inside each program (cmocka and pytest say how
many there were; any other program is one test), prints every failure and the reason of every skip, and
ends with "N passed, N failed, N skipped". The exit status is 1 when anything failed or nothing ran.
"""

import re
import sys
import xml.etree.ElementTree as ET

CMOCKA = {
    "passed": re.compile(r"^\[  PASSED  \] (\d+) test", re.M),
    "failed": re.compile(r"^\[  FAILED  \] (\d+) test", re.M),
    "skipped": re.compile(r"^\[  SKIPPED \] (\d+) test", re.M),
}
PYTEST_END = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.:]+", re.M)
PYTEST_SKIP = re.compile(r"^SKIPPED \[\d+\] (?:\.\./)*(.*)", re.M)
CMOCKA_SKIP = re.compile(r"^\[  SKIPPED \] (?!\d+ test)(.*)", re.M)
SKIP_REASON = re.compile(r"^(?:SKIP|skip(?:ped)?):? (.*)", re.M)


def count_output(text):
    """Tests inside one program by its own report, or None when it makes none."""
    counts = {k: sum(int(n) for n in r.findall(text)) for k, r in CMOCKA.items()}
    ends = PYTEST_END.findall(text)
    if ends:
        for number, word in re.findall(r"(\d+) (\w+)", ends[-1]):
            key = {"error": "failed", "errors": "failed"}.get(word, word)
            if key in counts:
                counts[key] += int(number)
    return counts if any(counts.values()) else None


def read_report(name, path, total):
    for case in ET.parse(path).getroot().iter("testcase"):
        label = f"{name}: {case.get('name')}"
        text = case.findtext("system-out") or ""
        status = case.get("status")
        counts = count_output(text) or {"passed": 0, "failed": 0, "skipped": 0}
        if status == "fail" and counts["failed"] == 0:
            counts["failed"] = 1
        elif status in ("notrun", "disabled", "skipped"):
            counts = {"passed": 0, "failed": 0, "skipped": 1}
        elif status == "run" and not any(counts.values()):
            counts["passed"] = 1
        reasons = SKIP_REASON.findall(text) + PYTEST_SKIP.findall(text)
        if counts["skipped"]:
            reasons = reasons or CMOCKA_SKIP.findall(text) or ["no reason given"]
            print(f"skipped  {label}: {'; '.join(dict.fromkeys(reasons))}")
        if counts["failed"]:
            print(f"FAILED   {label}")
        for key in total:
            total[key] += counts[key]


def main(arguments):
    total = {"passed": 0, "failed": 0, "skipped": 0}
    for argument in arguments:
        name, path = argument.split("=", 1)
        try:
            read_report(name, path, total)
        except (OSError, ET.ParseError) as error:
            print(f"FAILED   {name}: {error}")
            total["failed"] += 1
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**total))
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
