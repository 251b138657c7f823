"""All jobs on clusters of one, two and four raylets: what they make here."""

import pytest

from tests.support.ray_jobs import Expected, calls, done, found, left_running
from tests.support.raylets import raylets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{} hosts".format)
def cluster(request):
    with raylets(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return Expected(tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("name", calls())
def test_the_same_with_any_number_of_hosts(tmp_path, cluster, expected, name):
    wanted = expected(name)
    assert done(calls()[name], tmp_path / "out", cluster.address) == 0
    assert found(tmp_path / "out") == wanted
    assert not left_running()
