"""Trouble is told when it begins and when it is over, however often it is met."""

from __future__ import annotations

import logging

import pytest

from featurestore.trouble import WORDS_MAX, Trouble


def test_trouble_is_told_once_in_the_same_words_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble(logging.getLogger("featurestore.test"), "rows cannot be read", "rows are read again")

    def told() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    trouble.passed()
    assert told() == [], "there was none"
    for words in ("away", "slow", "away", "slow"):
        trouble.met(OSError(words))
    assert told() == ["rows cannot be read: away", "rows cannot be read: slow"]
    for number in range(WORDS_MAX):
        trouble.met(OSError(f"port {number}"))
    assert len(told()) == WORDS_MAX - 2, "words that are always new are not told for ever"
    trouble.passed()
    trouble.passed()
    assert told() == ["rows are read again"]
    trouble.met(OSError("away"))
    assert told() == ["rows cannot be read: away"], "it began anew"
