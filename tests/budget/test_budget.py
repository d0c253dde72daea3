"""Sizes and budgets as a person writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.budget import Budget, format_size, parse_size
from edgesparse.errors import UsageError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("2.2MB", 2_200_000),
        ("64MiB", 67_108_864),
        ("300000", 300_000),
        (300_000, 300_000),
        ("1 kB", 1_000),
        ("1KIB", 1_024),
        ("0.5gb", 500_000_000),
        ("  7b ", 7),
        ("4.1MB", 4_100_000),
        ("1.1kB", 1_100),
    ],
)
def test_a_size_means_what_it_says(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e6", "2,2MB", "5TB", "0", "0.1b", "nan", "∞"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


@given(st.integers(1, 10**12))
def test_a_printed_size_reads_back_within_what_its_digits_say(nbytes):
    assert abs(parse_size(format_size(nbytes)) - nbytes) <= 0.006 * nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.00 kB"), (2_200_000, "2.20 MB"), (254e6, "254 MB")],
)
def test_sizes_print_three_digits(nbytes, text):
    assert format_size(nbytes) == text


@pytest.mark.parametrize(
    ("text", "file", "peak"),
    [
        ("2.2MB", 2_200_000, None),
        ("file=2.2MB", 2_200_000, None),
        ("peak=12MB", None, 12_000_000),
        ("file=2.2MB,peak=12MB", 2_200_000, 12_000_000),
        ("peak = 12MB , file = 1kB", 1_000, 12_000_000),
    ],
)
def test_a_budget_reads_what_the_command_line_says(text, file, peak):
    budget = Budget.parse(text)
    assert (budget.file, budget.peak) == (file, peak)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ram=2MB", "unknown key 'ram'"),
        ("file=1MB,file=2MB", "twice"),
        ("1MB,file=2MB", "twice"),
        ("file=", "size"),
        ("", "size"),
        ("file=1MB,", "size"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(text, reason):
    with pytest.raises(UsageError, match=reason):
        Budget.parse(text)


def test_no_limit_is_unlimited():
    assert Budget().is_unlimited
    assert not Budget(file=1).is_unlimited
    assert str(Budget()) == "none"
    assert str(Budget(file="2.2MB", peak="12MB")) == "file 2.20 MB, peak 12.00 MB"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("5ms", 5_000_000), ("0.2s", 200_000_000), ("800 us", 800_000), ("3µs", 3000), ("7", 7)],
)
def test_a_duration_means_what_it_says(text, nanoseconds):
    assert Budget.parse(f"latency={text}").latency == nanoseconds


@pytest.mark.parametrize(
    "text", ["latency=0ms", "latency=5MB", "context=0", "context=1.5", "context=many"]
)
def test_limits_without_meaning_are_refused(text):
    with pytest.raises(UsageError):
        Budget.parse(text)


def test_all_limits_are_said():
    budget = Budget.parse("file=1MB,download=900kB,peak=2MB,latency=1.5ms,context=128")
    said = "file 1.00 MB, download 900 kB, peak 2.00 MB, latency 1.5 ms, context 128 tokens"
    assert str(budget) == said
    assert not Budget(latency="1ms").is_unlimited
    assert Budget(context=5).is_unlimited


LIMITS = st.none() | st.integers(1, 10**12)


@given(LIMITS, LIMITS, LIMITS, LIMITS, LIMITS)
def test_json_reads_back(file, download, peak, latency, context):
    budget = Budget(file=file, download=download, peak=peak, latency=latency, context=context)
    assert Budget(**budget.to_json()) == budget
