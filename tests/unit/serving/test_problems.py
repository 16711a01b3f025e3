"""What the log tells of defects."""

from __future__ import annotations

from serving.problems import where


def test_causes_that_go_in_a_circle_are_told_once() -> None:
    first, second = ValueError("c-001"), KeyError("c-002")
    first.__cause__, second.__cause__ = second, first
    assert where(first) == "ValueError at ; after KeyError at "
