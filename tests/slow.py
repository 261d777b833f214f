"""Reads ``slow.txt``."""

from pathlib import Path

SLOW = Path(__file__).with_name("slow.txt")


def slow_tests() -> dict[str, set[str]]:
    """FILE::TEST -> the ids of its cases that are not slow."""
    tests = {}
    for line in SLOW.read_text(encoding="utf-8").splitlines():
        test, _, kept = line.partition("#")[0].partition("| keeps:")
        if test.strip():
            tests[test.strip()] = {each.strip() for each in kept.split(" ; ") if each.strip()}
    return tests
