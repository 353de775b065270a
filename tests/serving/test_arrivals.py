"""Streams of requests from files and distributions, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bringup.errors import BringupError
from bringup.serving.arrivals import Stream, stream


def draw(arrivals: str, lengths: str | None = "fixed:10:20", count: int | None = None, seed: int = 0) -> Stream:
    return stream(arrivals, lengths, count, np.random.default_rng(seed))


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_poisson_has_its_rate_and_its_spread() -> None:
    gaps = np.diff(draw("poisson:5", count=20_000).arrival)
    assert gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert gaps.std() == pytest.approx(0.2, rel=0.03)


def test_constant_has_equal_gaps() -> None:
    np.testing.assert_allclose(np.diff(draw("constant:4", count=10).arrival), 0.25)


def test_the_same_seed_draws_the_same() -> None:
    first, second, other = (draw("poisson:5", "lognormal:100:50", 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.arrival, second.arrival)
    np.testing.assert_array_equal(first.prompt, second.prompt)
    assert (first.prompt != other.prompt).any()


def test_lognormal_has_its_medians() -> None:
    drawn = draw("poisson:5", "lognormal:400:100:0.5", 20_000)
    assert np.median(drawn.prompt) == pytest.approx(400, rel=0.02)
    assert np.log(drawn.output).std() == pytest.approx(0.5, rel=0.03)


def test_a_log_of_an_engine_is_read(tmp_path: Path) -> None:
    rows = [
        {"arrival_time": 1000.5, "input_toks": 7, "output_toks": 3},
        {"arrival_time": 1002.0, "input_toks": 8, "output_toks": 4, "priority": 2, "prefix": "a", "prefix_tokens": 5},
    ]
    read = draw(write(tmp_path / "log.jsonl", *rows), None)
    assert read.arrival.tolist() == [0.0, 1.5]
    assert (read.prompt.tolist(), read.output.tolist()) == ([7, 8], [3, 4])
    assert (read.prefix.tolist(), read.shared.tolist()) == ([-1, 0], [0, 5])
    assert read.has_priorities and read.rate == pytest.approx(1 / 1.5)


def test_arrivals_keep_their_priorities_with_other_lengths(tmp_path: Path) -> None:
    read = draw(write(tmp_path / "log.jsonl", {"arrival": 0, "priority": 2}, {"arrival": 1}), "fixed:7:3")
    assert (read.priority.tolist(), read.prompt.tolist()) == ([2, 0], [7, 7]) and read.has_priorities


def test_faster_arrivals_keep_their_requests() -> None:
    drawn = draw("poisson:5", "lognormal:100:50", 50)
    assert drawn.faster(2).rate == pytest.approx(2 * drawn.rate)
    np.testing.assert_array_equal(drawn.faster(2).prompt, drawn.prompt)


GOOD = {"arrival": 0.0, "prompt_tokens": 5, "output_tokens": 6}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{**GOOD, "arrival": 2.0}, GOOD], "2: arrives before the request above it: sort the file by arrival"),
        ([{**GOOD, "output_tokens": 0}], "1: output_tokens must be a whole number of at least 1, got 0"),
        ([{**GOOD, "prompt_tokens": 1.5}], "1: prompt_tokens must be a whole number"),
        ([{**GOOD, "prompt_tokens": "many"}], "1: prompt_tokens must be a number, got many"),
        ([{**GOOD, "arrival": 10**400}], "1: arrival must be at most 9,007,199,254,740,992"),
        ([{**GOOD, "arrival": -(10**400)}], "1: arrival must be a number of at least 0, got -1000"),
        ([{"arrival": 1.0, "prompt_tokens": 5}], "1: has no output_tokens"),
        ([{**GOOD, "prefix": 1, "prefix_tokens": 9}], "1: prefix_tokens is more than the prompt has"),
        ([], "has no requests"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BringupError, match=message):
        draw(write(tmp_path / "requests.jsonl", *rows), None)


@pytest.mark.parametrize(
    "arrivals, lengths, message",
    [
        ("poisson:0", "fixed:1:1", "arrivals poisson: must be a positive number, got 0"),
        ("poisson:", "fixed:1:1", "got nothing"),
        ("poisson:1e-310", "fixed:1:1", "the rate must be from 1e-06 to 1e\\+09 per second"),
        ("constant:1e300", "fixed:1:1", "the rate must be from 1e-06 to 1e\\+09 per second"),
        ("closed:1.5", "fixed:1:1", "must be a positive whole number"),
        ("poisson:1", None, "need lengths"),
        ("poisson:1", "fixed:1", "write fixed:PROMPT:OUTPUT"),
        ("poisson:1", "lognormal:1:2:3:4", "write lognormal:PROMPT:OUTPUT"),
        ("nowhere.jsonl", None, "there is no such request file"),
    ],
)
def test_malformed_options_are_refused(arrivals: str, lengths: str | None, message: str) -> None:
    with pytest.raises(BringupError, match=message):
        draw(arrivals, lengths)


def test_a_line_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(GOOD) + "\n[1]\n", encoding="utf-8")
    with pytest.raises(BringupError, match=r"requests.jsonl:2: must be a JSON object"):
        draw(str(path), None)
