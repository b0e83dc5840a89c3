"""A round from order to result, against members that do all sorts of things."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import RecordDict
from pydantic import ValidationError

from coordinator.campaign.reply import ContributionReply, Reply, merged_bases
from coordinator.config import FedProx, Krum
from coordinator.federation.errors import FederationError, SuperLinkUnreachable
from coordinator.federation.fleet import NodeReply
from coordinator.federation.orders import (
    Member,
    RoundOrder,
    RoundResult,
    canonical_key,
)
from coordinator.federation.round import conduct
from policy.weights import load_weights, save_weights, weights_digest
from protocol.contribution import Contribution
from protocol.eligibility import Terms
from protocol.episode_keys import pack_keys
from protocol.flower import (
    INSTALL,
    STATISTICS,
    TRAIN,
    InstallReply,
    InstallRequest,
    StatisticsReply,
    TrainRequest,
    pack,
    unpack,
)
from protocol.update import decode_update, encode_update

BASE = {"w": np.array([1.0, 2.0, 3.0], np.float32), "b": np.array([[0.5]], np.float32)}
DIGEST = weights_digest(BASE)
OLDER = "0" * 64
KEYS = [ec.generate_private_key(ec.SECP384R1()).public_key() for _ in range(4)]


def pem(index):
    return (
        KEYS[index]
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def openssh(index):
    return (
        KEYS[index]
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


class ScriptedFleet:
    """Members as a table: key -> {message type -> what it does with the content}.

    A behaviour returns the content of a reply, or a string: the problem instead of one.
    """

    def __init__(self, members, present_from=1):
        self.members = members
        self.asked = []
        self._looks_until_present = present_from

    def connected(self):
        self._looks_until_present -= 1
        return set(self.members) if self._looks_until_present <= 0 else set()

    def ask(self, message_type, requests, timeout_s):
        self.asked.append((message_type, set(requests)))
        for key, content in requests.items():
            behaviour = self.members[key].get(message_type, lambda _content: "silent")
            said = behaviour(content)
            if isinstance(said, RecordDict):
                yield NodeReply(key, said, None, 1.0)
            else:
                yield NodeReply(key, None, said, timeout_s)


def gains(value, steps=10, examples=100, base_digest=DIGEST, delta=None):
    def train(_content):
        gained = delta or {k: np.full_like(v, value) for k, v in BASE.items()}
        reply = Contribution(
            base_digest=base_digest, base_round=0, steps=steps, examples=examples, loss=0.5,
            sequence=1,
        )  # fmt: skip
        return pack(reply, encode_update(gained))

    return train


def installs(content):
    request, blob = unpack(InstallRequest, content, 1 << 20)
    assert weights_digest(decode_update(blob).weights) == request.base_digest
    return pack(InstallReply(base_digest=request.base_digest))


def installs_having_trained(*keys):
    def answer(content):
        return pack(unpack(InstallReply, installs(content), 0)[0], pack_keys(keys))

    return answer


def robot(value=1.0, **changes):
    return {TRAIN: gains(value, **changes), INSTALL: installs}


@pytest.fixture
def base_path(tmp_path):
    path = tmp_path / "base.safetensors"
    save_weights(path, BASE)
    return path


@pytest.fixture
def order(base_path):
    def make(count=3, kind="train", **changes):
        fields = {
            "round": 5,
            "kind": kind,
            "members": [Member(agent_id=f"arm-{i}", public_key=openssh(i)) for i in range(count)],
            "base_weights": base_path,
            "base_info": {"digest": DIGEST, "round": 4, "spec": {"kind": "act"}},
            "terms": Terms(bases=(DIGEST,)),
        }
        return RoundOrder(**fields | changes)

    return make


class Time:
    """A clock that passes only by sleeping."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


@pytest.fixture
def carry_out(tmp_path):
    def run(order, fleet):
        clock = Time()
        return conduct(order, fleet, tmp_path, tmp_path, clock, clock.sleep)

    return run


def test_the_aggregate_is_the_weighted_mean_and_goes_to_the_members(order, carry_out):
    fleet = ScriptedFleet(
        {pem(0): robot(1.0, examples=100), pem(1): robot(4.0, examples=200), pem(2): robot(7.0)}
    )
    result = carry_out(order(), fleet)
    assert result.failure is None
    expected = (1.0 * 100 + 4.0 * 200 + 7.0 * 100) / 400
    weights = load_weights(result.aggregate)
    np.testing.assert_allclose(weights["w"], BASE["w"] + expected, rtol=1e-6)
    assert result.aggregate_digest == weights_digest(weights)
    assert result.base_info == {
        "digest": result.aggregate_digest, "round": 5, "spec": {"kind": "act"},
    }  # fmt: skip
    assert sorted(result.installed) == ["arm-0", "arm-1", "arm-2"]
    assert [reply.weight for reply in result.replies] == [100, 200, 100]
    assert result.bytes_up == sum(reply.bytes_up for reply in result.replies) > 0
    assert result.bytes_down > 0


def test_exactly_the_members_are_asked(order, carry_out):
    fleet = ScriptedFleet({pem(i): robot() for i in range(4)})
    carry_out(order(2), fleet)
    assert fleet.asked == [(TRAIN, {pem(0), pem(1)}), (INSTALL, {pem(0), pem(1)})]


def test_one_bad_member_costs_the_others_nothing(order, carry_out):
    poison = {"w": np.array([1.0, np.nan, 1.0], np.float32), "b": np.ones((1, 1), np.float32)}
    fleet = ScriptedFleet(
        {
            pem(0): robot(2.0),
            pem(1): robot(delta=poison),
            pem(2): {TRAIN: lambda _content: "nothing gained yet", INSTALL: installs},
        }
    )
    result = carry_out(order(), fleet)
    assert result.failure is None
    np.testing.assert_allclose(load_weights(result.aggregate)["w"], BASE["w"] + 2.0)
    reasons = {reply.agent_id: reply.reason for reply in result.replies}
    assert reasons == {
        "arm-0": None,
        "arm-1": "tensor w holds 1 numbers that are not finite",
        "arm-2": "nothing gained yet",
    }
    # Who was refused gets the new base all the same: it is a member.
    assert sorted(result.installed) == ["arm-0", "arm-1", "arm-2"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (pack(InstallReply(base_digest=DIGEST)), "Contribution"),
        (RecordDict(), "no armada/json text"),
    ],
)
def test_a_reply_that_is_none_is_refused(order, carry_out, reply, reason):
    fleet = ScriptedFleet({pem(0): robot(), pem(1): {TRAIN: lambda _content: reply}})
    result = carry_out(order(2), fleet)
    assert reason in result.replies[1].reason
    assert result.failure is None


def test_an_update_larger_than_the_base_is_never_unpacked(order, carry_out):
    large = {"w": np.zeros(10_000_000, np.float32), "b": np.zeros((1, 1), np.float32)}
    fleet = ScriptedFleet({pem(0): robot(), pem(1): robot(delta=large)})
    assert "at most 16 allowed" in carry_out(order(2), fleet).replies[1].reason


def test_too_few_replies_fail_the_round_with_the_reasons(order, carry_out):
    fleet = ScriptedFleet({pem(0): robot(), pem(1): {}, pem(2): {}})
    result = carry_out(order(min_replies=2), fleet)
    assert result.failure == "1 of 3 members' work was accepted; 2 are needed"
    assert result.aggregate is None
    assert result.installed == []
    assert [reply.reason for reply in result.replies] == [None, "silent", "silent"]


def test_a_strategys_own_minimum_counts(order, carry_out):
    fleet = ScriptedFleet({pem(i): robot() for i in range(3)})
    result = carry_out(order(strategy=Krum(name="krum", num_malicious_nodes=1)), fleet)
    assert result.failure == "3 of 3 members' work was accepted; 5 are needed"


def test_members_that_connect_late_are_waited_for(order, carry_out):
    result = carry_out(order(2), ScriptedFleet({pem(0): robot(), pem(1): robot()}, present_from=5))
    assert len(result.installed) == 2


def test_a_member_that_is_not_connected_is_left_out(order, carry_out):
    result = carry_out(order(2), ScriptedFleet({pem(0): robot(3.0)}))
    assert result.replies[1].reason == "its SuperNode is not connected to the SuperLink"
    np.testing.assert_allclose(load_weights(result.aggregate)["w"], BASE["w"] + 3.0)


def test_nobody_connected_fails_the_round(order, carry_out):
    result = carry_out(order(), ScriptedFleet({}))
    assert "no member's SuperNode" in result.failure
    assert len(result.replies) == 3


def test_who_missed_the_new_base_is_named(order, carry_out):
    fleet = ScriptedFleet({pem(0): robot(), pem(1): {TRAIN: gains(1.0)}})
    result = carry_out(order(2), fleet)
    assert result.failure is None
    assert result.installed == ["arm-0"]
    assert result.not_installed == {"arm-1": "silent"}


def test_a_superlink_lost_after_the_aggregate_keeps_the_aggregate(order, carry_out):
    class Lost(ScriptedFleet):
        def ask(self, message_type, requests, timeout_s):
            if message_type == INSTALL:
                raise SuperLinkUnreachable("no SuperLink answers")
            yield from super().ask(message_type, requests, timeout_s)

    result = carry_out(order(2), Lost({pem(0): robot(), pem(1): robot()}))
    assert result.failure is None
    assert result.aggregate is not None
    assert set(result.not_installed) == {"arm-0", "arm-1"}


def test_a_superlink_lost_before_it_fails_the_round(order, carry_out):
    class Lost(ScriptedFleet):
        def ask(self, message_type, requests, timeout_s):
            raise SuperLinkUnreachable("no SuperLink answers")

    result = carry_out(order(1), Lost({pem(0): robot()}))
    assert result.failure == "no SuperLink answers"


def test_work_is_merged_once(order, carry_out):
    first = order(2)
    result = carry_out(first, ScriptedFleet({pem(0): robot(), pem(1): {}}))
    merged = merged_bases(result.replies)
    assert merged == {"arm-0": DIGEST}
    # The same base is still current for this order, so it is new work.
    second = order(2, terms=Terms(bases=(DIGEST, OLDER), max_staleness=1), merged_bases=merged)
    again = carry_out(second, ScriptedFleet({pem(0): robot(), pem(1): robot(base_digest=OLDER)}))
    assert [reply.accepted for reply in again.replies] == [True, True]
    assert merged_bases(again.replies) == {"arm-0": DIGEST, "arm-1": OLDER}
    third = order(2, terms=second.terms, merged_bases=merged_bases(again.replies))
    last = carry_out(third, ScriptedFleet({pem(0): robot(), pem(1): robot(base_digest=OLDER)}))
    assert last.replies[1].reason == f"its work from base {OLDER[:12]} was merged already"


def test_a_result_reads_back_with_every_record_as_it_was(order, carry_out):
    fleet = ScriptedFleet({pem(0): robot(), pem(1): {}, pem(2): robot(base_digest=OLDER)})
    result = carry_out(order(), fleet)
    again = RoundResult.model_validate_json(result.model_dump_json())
    assert again == result
    assert [type(reply) for reply in again.replies] == [
        ContributionReply, Reply, ContributionReply,
    ]  # fmt: skip
    assert again.replies[2].reason == f"its base {OLDER[:12]} is not one of this campaign"


def test_the_robot_is_told_from_which_base_its_work_was_merged(order, carry_out):
    told = {}

    def install_of(agent):
        def install(content):
            told[agent] = unpack(InstallRequest, content, 1 << 20)[0].merged_base
            return installs(content)

        return install

    fleet = ScriptedFleet(
        {pem(0): {TRAIN: gains(1.0), INSTALL: install_of("a")}, pem(1): {INSTALL: install_of("b")}}
    )
    carry_out(order(2), fleet)
    assert told == {"a": DIGEST, "b": None}


def test_what_each_robot_ever_trained_on_is_in_the_result(order, carry_out):
    keys = ("00" * 8, "ab" * 8)
    fleet = ScriptedFleet(
        {
            pem(0): {TRAIN: gains(1.0), INSTALL: installs_having_trained(*keys)},
            pem(1): robot(),
            pem(2): {
                TRAIN: gains(1.0),
                INSTALL: lambda _: pack(InstallReply(base_digest=DIGEST), b"1234567"),
            },
        }
    )
    result = carry_out(order(), fleet)
    assert result.trained == {"arm-0": list(keys), "arm-1": []}
    assert "no list of episode keys" in result.not_installed["arm-2"]


def test_a_window_passes_its_orders_on_and_leaves_time_for_the_way(order, carry_out):
    seen = []

    def train(content):
        seen.append(unpack(TrainRequest, content, 0)[0])
        return gains(1.0)(content)

    carry_out(
        order(
            1,
            terms=Terms(bases=(DIGEST,), local_work="window"),
            window_id="w7",
            steps=40,
            strategy=FedProx(name="fedprox", proximal_mu=0.1),
            reply_timeout_s=30,
        ),
        ScriptedFleet({pem(0): {TRAIN: train, INSTALL: installs}}),
    )
    request = seen[0]
    assert (request.window_id, request.steps, request.proximal_mu) == ("w7", 40, 0.1)
    assert request.time_s == 20.0


def test_an_install_round_pushes_the_base(order, carry_out):
    result = carry_out(
        order(2, kind="install"), ScriptedFleet({pem(0): {INSTALL: installs}, pem(1): {}})
    )
    assert result.failure is None
    assert result.installed == ["arm-0"]
    assert [reply.accepted for reply in result.replies] == [True, False]


def test_a_base_that_is_not_the_one_described_is_not_sent(order, carry_out):
    fleet = ScriptedFleet({pem(0): robot()})
    for kind in ("install", "train"):
        terms = Terms(bases=("e" * 64,))
        result = carry_out(order(1, kind=kind, base_info={"digest": "e" * 64}, terms=terms), fleet)
        assert "digests differ" in result.failure
    assert fleet.asked == []


def test_statistics_are_collected_by_agent(order, carry_out):
    def sketch(_content):
        return pack(StatisticsReply(), b'{"frames": 3}')

    def nonsense(_content):
        return pack(StatisticsReply(), b"[1, 2")

    fleet = ScriptedFleet(
        {pem(0): {STATISTICS: sketch}, pem(1): {STATISTICS: nonsense}, pem(2): {}}
    )
    result = carry_out(order(kind="statistics", base_weights=None, base_info=None), fleet)
    assert result.failure is None
    assert result.sketches == {"arm-0": {"frames": 3}}
    assert [reply.accepted for reply in result.replies] == [True, False, False]
    few = carry_out(order(kind="statistics", min_replies=2), fleet)
    assert few.failure == "1 of 3 members sent statistics; 2 are needed"


def test_an_order_that_cannot_be_carried_out_is_refused_when_it_is_made(order):
    with pytest.raises(ValidationError, match="needs base_weights"):
        order(base_weights=None)
    with pytest.raises(ValidationError, match="needs steps"):
        order(terms=Terms(bases=(DIGEST,), local_work="window"))
    for terms in (None, Terms(bases=(OLDER, DIGEST))):
        with pytest.raises(ValidationError, match="needs terms, with the base of base_info"):
            order(terms=terms)
    with pytest.raises(ValidationError, match="named twice"):
        order(members=[Member(agent_id="a", public_key=pem(0))] * 2)


def test_both_forms_of_a_key_are_the_same_node():
    assert canonical_key(openssh(0)) == canonical_key(pem(0).encode()) == pem(0)
    with pytest.raises(FederationError, match="not a public key"):
        canonical_key("ssh-rsa nonsense")
