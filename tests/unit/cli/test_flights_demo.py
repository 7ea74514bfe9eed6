"""The demo where less is installed than it can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.cli import flights_demo
from featurestore.cli.flights_demo import FlightsDemo


def test_without_the_extras_the_steps_with_a_model_are_left_out_and_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights_demo, "MODEL_NEEDS", ("numpy", "a_module_nobody_has"))
    shown: list[str] = []
    demo = FlightsDemo(tmp_path, shown.append)
    demo.predictions()
    assert shown == ["train ..."]
    assert [(step.name, step.what) for step in demo.steps] == [
        (
            "train",
            'left out, as is predict, without a_module_nobody_has: pip install "featurestore[inference,training]"',
        )
    ]
    assert demo.equal
    assert "predict" not in demo.closing("flights-demo")
