"""Does the arbiter keep every guarantee, waste nothing, and split the rest by weight?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.core.errors import MappingError
from moectl.memory.arbiter import Claim, admit, check_claims, fair_shares, party_of

PARTIES = ("m/adapters", "m/experts", "m/kv")
COUNTS = st.integers(0, 60)
CLAIMS = st.fixed_dictionaries(
    {
        who: st.builds(Claim, st.integers(0, 20), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
        for who in PARTIES
    }
)
WANTS = st.fixed_dictionaries({who: COUNTS for who in PARTIES})


@given(total=st.integers(0, 120), wants=WANTS, claims=CLAIMS)
def test_shares_are_all_given_and_guarantees_come_first(total, wants, claims):
    shares = fair_shares(total, wants, claims)
    assert sum(shares.values()) == min(total, sum(wants.values()))
    assert all(0 <= shares[who] <= wants[who] for who in PARTIES)
    if sum(claim.guarantee for claim in claims.values()) <= total:
        for who in PARTIES:
            assert shares[who] >= min(wants[who], claims[who].guarantee)


@given(total=st.integers(0, 300), weights=st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_without_guarantees_hungry_parties_split_by_weight(total, weights):
    claims = {str(n): Claim(0, float(weight)) for n, weight in enumerate(weights)}
    shares = fair_shares(total, dict.fromkeys(claims, 10_000), claims)
    for who, claim in claims.items():
        assert abs(shares[who] - total * claim.weight / sum(weights)) < len(weights)


@given(
    requests=st.lists(st.tuples(st.sampled_from(PARTIES), st.integers(-20, 20)), max_size=40),
    claims=CLAIMS,
)
def test_no_order_of_requests_ever_eats_a_guarantee(requests, claims):
    total = 60
    used = dict.fromkeys(PARTIES, 0)
    for who, change in requests:
        free = total - sum(used.values())
        if change <= 0:
            used[who] = max(0, used[who] + change)
            continue
        verdict = admit(who, change, free, used, claims)
        if verdict.admitted:
            assert change <= free
            used[who] += change
        else:
            # Whoever is refused was not within its own guarantee.
            assert used[who] + change > claims[who].guarantee
            assert change > verdict.available
        unmet = sum(max(0, claims[w].guarantee - used[w]) for w in PARTIES)
        assert total - sum(used.values()) >= unmet


def test_a_refusal_names_who_is_furthest_above_its_share():
    claims = {"m/kv": Claim(10, 1.0), "m/experts": Claim(0, 1.0), "m/adapters": Claim(0, 2.0)}
    used = {"m/kv": 0, "m/experts": 70, "m/adapters": 20}
    verdict = admit("m/adapters", 15, 10, used, claims)
    assert not verdict.admitted and verdict.available == 0
    assert verdict.held_back == {"m/kv": 10}
    assert list(verdict.reclaim) == ["m/experts"]
    assert admit("m/kv", 10, 10, used, claims).admitted


def test_claims_that_cannot_all_be_kept_are_refused():
    with pytest.raises(MappingError, match="30 pages are guaranteed"):
        check_claims({"a": Claim(10), "b": Claim(20)}, 29)
    for wrong in (Claim(-1), Claim(0, -1.0), Claim(0, float("nan"))):
        with pytest.raises(MappingError):
            check_claims({"a": wrong}, 100)


def test_owners_of_one_kind_are_one_party():
    assert party_of("chat/law/adapters") == party_of("chat/math/adapters") == "chat/adapters"
    assert (party_of("chat/kv"), party_of("odd")) == ("chat/kv", "odd")
