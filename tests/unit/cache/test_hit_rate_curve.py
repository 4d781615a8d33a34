"""The curve that the planner reads: strict, and sensible between and beyond its points."""

import pytest

from moectl.core.curves import CurvePoint, HitRateCurve
from moectl.core.errors import ProtocolError, RefusedError
from moectl.core.records import from_json, to_json


def _curve(points: tuple[CurvePoint, ...]) -> HitRateCurve:
    return HitRateCurve("t", "m", "trajectory", "shared", 4, 8, 2, points)


CURVE = _curve((CurvePoint(8, 0.4, 0.6), CurvePoint(16, 0.8, 0.9)))


def test_a_curve_survives_its_record_and_other_fields_are_refused() -> None:
    assert from_json(HitRateCurve, to_json(CURVE)) == CURVE
    with pytest.raises(ProtocolError):
        from_json(HitRateCurve, to_json(CURVE).replace('"policy"', '"polity"'))


def test_between_points_it_is_straight_and_at_the_ends_it_is_nothing_and_all() -> None:
    assert CURVE.hit_rate_at(12) == pytest.approx(0.6)
    assert CURVE.hit_rate_at(4) == pytest.approx(0.2)
    assert CURVE.hit_rate_at(24) == pytest.approx(0.9)
    assert CURVE.hit_rate_at(0) == 0.0
    assert CURVE.hit_rate_at(32) == CURVE.hit_rate_at(99) == 1.0
    assert CURVE.loads_per_token(16) == pytest.approx(0.2 * 8)


@pytest.mark.parametrize(
    "points",
    [(), (CurvePoint(8, 0.4, 0.6), CurvePoint(8, 0.5, 0.6)), (CurvePoint(8, 1.4, 0.6),)],
)
def test_curves_that_cannot_be_are_refused(points: tuple[CurvePoint, ...]) -> None:
    with pytest.raises(RefusedError):
        _curve(points)
