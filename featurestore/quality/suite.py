"""Great Expectations at the edge: makes a view's suite, and lets its expectations judge what was counted.

With `report.py` the only module that knows the package. No data context is made, so that nothing is configured, stored
or sent anywhere; the variable below is for releases that would send statistics on import.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from featurestore.feature_view import FeatureView
from featurestore.quality.forms import IN_SET, Expected
from featurestore.quality.tally import EXAMPLES_MAX, Tally

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
with warnings.catch_warnings():
    # It imports the names by which Python called parts of `re` before 3.11.
    warnings.filterwarnings("ignore", "module 'sre_", DeprecationWarning)
    import great_expectations
    from great_expectations import ExpectationSuite
    from great_expectations.core.expectation_validation_result import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
    )
    from great_expectations.expectations.registry import get_expectation_impl

#: Counts and examples; no queries or row numbers, which a stream does not have.
_RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": EXAMPLES_MAX}
_SEVERITY = {"reject": "critical", "quarantine": "critical", "warn": "warning"}


def suite_document(view: FeatureView, expected: Sequence[Expected]) -> dict[str, Any]:
    """The suite as JSON, for use anywhere: rules with a faithful form; `meta` names those without, and the reason."""
    suite = ExpectationSuite(
        name=view.ref,
        expectations=[_expectation(one) for one in expected if one.form.expectation is not None],
        meta={
            "featurestore": {
                "view": view.ref,
                "without_form": [
                    {"rule": one.name, "breaks_when": one.says, "why": one.form.note}
                    for one in expected
                    if one.form.expectation is None
                ],
            }
        },
    )
    document: dict[str, Any] = suite.to_json_dict()
    return document


def judge(
    view: FeatureView, tallies: Sequence[Tally], run_name: str, run_time: str
) -> ExpectationSuiteValidationResult:
    """The suite's result: each expectation judges its rule's counts, or the gate's verdict where it has no form."""
    results = [_judged(_expectation(one.expected), one) for one in tallies]
    good = sum(result.success for result in results)
    return ExpectationSuiteValidationResult(
        success=good == len(results),
        results=results,
        suite_name=view.ref,
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": good,
            "unsuccessful_expectations": len(results) - good,
            "success_percent": 100 * good / len(results),
        },
        meta={
            "great_expectations_version": great_expectations.__version__,
            "run_id": {"run_name": run_name, "run_time": run_time},
            "batch_spec": {"data_asset_name": f"history of {view.ref}"},
        },
    )


def _expectation(expected: Expected) -> Any:
    more: dict[str, Any] = {
        "meta": {"featurestore": {"rule": expected.name}},
        "severity": _SEVERITY[expected.on_violation],
        "notes": expected.form.note,
    }
    if expected.form.expectation is not None:
        made = get_expectation_impl(expected.form.expectation)
        return made(column=expected.column, **expected.arguments, **more)
    says = f"by the gate's verdict, nowhere: {expected.says}"
    return get_expectation_impl(IN_SET)(column=expected.name, value_set=[True], description=says, **more)


def _judged(expectation: Any, tally: Tally) -> ExpectationValidationResult:
    """What the expectation says when it is handed the metrics that it would have had computed on a batch."""
    runtime = {"result_format": dict(_RESULT_FORMAT)}
    counted = {
        "table.row_count": tally.rows,
        "column_values.nonnull.unexpected_count": tally.nulls,
        f"{expectation.map_metric}.unexpected_count": tally.breaches,
        f"{expectation.map_metric}.unexpected_values": [str(example) for example in tally.examples],
    }
    asked = expectation.get_validation_dependencies(runtime_configuration=runtime).metric_configurations
    metrics = {metric.id: counted[name] for name, metric in asked.items()}
    return expectation.metrics_validate(metrics, runtime_configuration=runtime)
