"""Batches of data with few identities, and lengths of runs as people write them."""

import pytest
from conftest import open_tiny, tiny_config

from jax_mmreid.config import parse_seconds
from jax_mmreid.errors import ConfigError, DataError


def test_a_batch_takes_all_of_few_identities_and_more_of_each(drawn):
    whole = open_tiny(tiny_config(drawn))
    count = len(whole.spec.pids)
    sizes = {"data.identities": 2 * count, "data.instances": 3}
    data = open_tiny(tiny_config(drawn, **sizes, **{"data.fit_batch": True}))
    assert data.spec.batch_size == count * 6
    batch = next(iter(data.train(0, 1)))
    assert sorted(batch["label"]) == sorted(6 * list(range(count)))
    with pytest.raises(DataError, match=f"the training data have {count} identities, fewer than the {2 * count}"):
        open_tiny(tiny_config(drawn, **sizes))


def test_a_batch_that_the_identities_fill_stays_as_it_is(drawn):
    plain, fitted = (open_tiny(tiny_config(drawn, **{"data.fit_batch": fit})) for fit in (False, True))
    assert fitted.spec == plain.spec


@pytest.mark.parametrize(("text", "seconds"), [("", 0), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("0s", 0)])
def test_seconds(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "-1m", "10 minutes", "nanm", "infs"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ConfigError, match=f"budget={text}: expected a number and s, m or h"):
        parse_seconds(text)
