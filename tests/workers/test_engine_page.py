"""docs/workers-engine.md says the numbers that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hutch.workers import changes, envelope, manifest, oauth, schedule, sync, tools, webhooks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "workers-engine.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "sentence",
    [
        f"At most {manifest.MAX_BYTES // 2**20} MiB, {manifest.MAX_DEPTH} levels and {manifest.MAX_ITEMS:,} entries",
        f"more than {envelope.MAX_ENVELOPE_BYTES // 2**20} MiB",
        f"at most {changes.MAX_CHANGES:,} changes, a key {changes.MAX_KEY:,} characters",
        f"a state {changes.MAX_STATE_BYTES // 2**20} MiB",
        f"every {manifest.DEFAULT_SCHEDULE_MS // 60_000} minutes",
        f"{schedule.CONTINUOUS_GAP_MS // 1000} second after the end",
        f"({sync.BACKOFF_BASE_MS // 1000} s where there is none)",
        f"at most {sync.BACKOFF_CAP_MS // 3_600_000} hour, ±{round(sync.JITTER * 100)} %",
        f"after {sync.MANUAL_ATTEMPTS} failures in a row",
        f"`ERROR` after {sync.ERROR_FAILURES} failures in a row, `WARNING` after {sync.WARNING_FAILURES}",
        f"more than {webhooks.VERIFY_MS // 1000} s",
        f"after {webhooks.RETRY_DELAYS_MS[0] // 1000} s, {webhooks.RETRY_DELAYS_MS[1] // 60_000} min and",
        f"min and {webhooks.RETRY_DELAYS_MS[2] // 60_000} min",
        f"{tools.MAX_NAME} at most",
    ],
)
def test_the_page_has_the_number(sentence: str) -> None:
    assert sentence in " ".join(PAGE.split())


def test_words_for_numbers_are_those_of_the_code() -> None:
    assert (sync.NO_PROGRESS_RUNS, webhooks.MAX_FAILURES, tools.HASH_LETTERS) == (3, 5, 8)
    assert (sync.BACKOFF_FACTOR, oauth.STATE_LIFE_MS, oauth.MARGIN_MS) == (2, 10 * 60_000, 60_000)


def test_every_error_of_the_engine_is_on_the_page() -> None:
    sources = (Path(manifest.__file__).parent / name for name in ("outcome.py", "sync.py"))
    named = {name for path in sources for name in re.findall(r'"([A-Z][A-Za-z]+Error)"', path.read_text(encoding="utf-8"))}
    made_here = named - {"RateLimitError", "WebhookVerificationError", "InvalidToolInputError"}
    assert made_here
    assert not [name for name in made_here if f"`{name}`" not in PAGE]
