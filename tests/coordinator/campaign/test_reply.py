"""One record of a contribution, the same in the state, in the status and in the audit log."""

from __future__ import annotations

import json

from coordinator.campaign.reply import ContributionReply, Reply, merged_bases
from coordinator.campaign.state import CampaignState, RoundSummary

GOOD = ContributionReply(
    agent_id="arm-1", accepted=True, base_digest="a" * 64, base_round=3, steps=7, examples=70,
    loss=0.5, sequence=4, staleness=1, weight=49.5, update_norm=0.25, bytes_up=9, seconds=1.5,
)  # fmt: skip
REFUSED = GOOD.model_copy(update={"agent_id": "arm-2", "accepted": False, "reason": "too old"})
SILENT = Reply(agent_id="arm-3", accepted=False, reason="no answer within 9 s", seconds=9.0)
ROUND = RoundSummary(
    round=4, kind="train", members=["arm-1", "arm-2", "arm-3"], replies=[GOOD, REFUSED, SILENT]
)


def test_the_state_gives_every_record_back_as_it_was() -> None:
    text = CampaignState(rounds=[ROUND]).model_dump_json()
    assert CampaignState.model_validate_json(text).rounds == [ROUND]


def test_readers_of_the_json_find_flat_keys() -> None:
    first, _, silent = json.loads(ROUND.model_dump_json())["replies"]
    assert {key: first[key] for key in ("agent_id", "accepted", "steps", "loss", "bytes_up")} == {
        "agent_id": "arm-1", "accepted": True, "steps": 7, "loss": 0.5, "bytes_up": 9,
    }  # fmt: skip
    assert silent == SILENT.model_dump()


def test_only_an_accepted_contribution_was_merged() -> None:
    installed = Reply(agent_id="arm-4", accepted=True)
    assert merged_bases([GOOD, REFUSED, SILENT, installed]) == {"arm-1": "a" * 64}


def test_a_campaign_written_before_this_record_is_still_read() -> None:
    document = json.loads(CampaignState(rounds=[ROUND]).model_dump_json())
    for reply in document["rounds"][0]["replies"]:
        del reply["base_round"], reply["window_id"]
        break
    old = CampaignState.model_validate_json(json.dumps(document)).rounds[0].replies[0]
    assert (type(old), old.agent_id, old.accepted, old.bytes_up) == (Reply, "arm-1", True, 9)
