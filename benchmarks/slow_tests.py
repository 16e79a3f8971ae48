"""Results of the tests that take minutes, from the reports of `make test-slow` and `make test-slurm`.

    python -m benchmarks.slow_tests build/slow.xml build/slurm.xml

Writes a dated file under benchmarks/results/.
"""

from __future__ import annotations

import datetime
import sys
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.result_file import surroundings, write_result

OUTCOMES = ("failure", "error", "skipped")


def main() -> int:
    """Returns: 0 when no test failed."""
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    times_s: Counter[str] = Counter()
    for report in map(Path, sys.argv[1:]):
        for case in ElementTree.parse(report).iter("testcase"):
            file = case.attrib["classname"].replace(".", "/") + ".py"
            outcomes[file][next((tag for tag in OUTCOMES if case.find(tag) is not None), "passed")] += 1
            times_s[file] += round(float(case.attrib["time"]))
    rows = []
    for file, counts in sorted(outcomes.items()):
        failed = counts["failure"] + counts["error"]
        rows.append(f"| {file} | {counts['passed']} | {failed} | {counts['skipped']} | {times_s[file]} |")
    lines = [
        f"# Tests that take minutes, {datetime.date.today()}",
        "",
        "    make test-slow test-slurm",
        f"    python -m benchmarks.slow_tests {' '.join(sys.argv[1:])}",
        "",
        "| file | passed | failed | skipped | s |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        *surroundings("no GPU", "torch", "pytorch-lightning", "deepspeed", "pytest"),
        "",
    ]
    write_result("slow-tests", "\n".join(lines))
    return int(any(counts["failure"] + counts["error"] for counts in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
