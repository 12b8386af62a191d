"""What a Box works out in one go about a large service: counted, it grows as the service does."""

from __future__ import annotations

import pytest

from tests.bench.forecasts import works
from tests.support import calls

FEW, MANY = 500, 4000
SMALL, LARGE = works(FEW), works(MANY)


@pytest.mark.parametrize("name", SMALL)
def test_it_grows_with_the_service_and_no_faster(name: str) -> None:
    few, many = calls(SMALL[name]), calls(LARGE[name])
    assert few > FEW / 100, "it did something"
    assert many <= 1.3 * few * MANY / FEW
