"""The roster: what each enrolled agent last said, and who counts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import AgentStatus, Features
from protocol.waiting import Reason, Waiting, waiting

# Three statuses missed: the agent is away although its will has not come.
STATUS_PATIENCE_S = 10.0


@dataclass(frozen=True)
class RosterEntry:
    """The newest status of one agent, and when it came (coordinator's clock)."""

    status: AgentStatus
    heard_unix_s: float

    def is_connected(self, now_unix_s: float) -> bool:
        """Online, and heard of lately."""
        return self.status.online and now_unix_s - self.heard_unix_s <= STATUS_PATIENCE_S


class Roster:
    """Everybody enrolled. Strangers are refused where the messages come in."""

    def __init__(
        self, enrolled: frozenset[str], min_episodes: int, cameras: frozenset[str] = frozenset()
    ) -> None:
        self.enrolled = enrolled
        self._min_episodes = min_episodes
        self._cameras = cameras
        self._members: dict[str, RosterEntry] = {}

    def hear(self, status: AgentStatus, now_unix_s: float) -> None:
        """Take a status of an enrolled agent."""
        if status.agent_id in self.enrolled:
            self._members[status.agent_id] = RosterEntry(status, now_unix_s)

    def status(self, agent_id: str) -> AgentStatus | None:
        """The newest status of one agent."""
        member = self._members.get(agent_id)
        return None if member is None else member.status

    def connected(self, now_unix_s: float) -> dict[str, AgentStatus]:
        """Agents that are online and were heard of lately, by id, sorted."""
        return {
            agent_id: member.status
            for agent_id, member in sorted(self._members.items())
            if member.is_connected(now_unix_s)
        }

    def with_data(self, now_unix_s: float) -> dict[str, AgentStatus]:
        """Connected agents, not paused, reachable by Flower, with episodes, sketch and features."""
        return {
            agent_id: member.status
            for agent_id, member in sorted(self._members.items())
            if self._lacks_data(agent_id, now_unix_s) is None
        }

    def fitting(self, features: Features, now_unix_s: float) -> dict[str, AgentStatus]:
        """Those with data, exactly `features`, and every camera that the policy sees."""
        return {
            agent_id: member.status
            for agent_id, member in sorted(self._members.items())
            if self.lacks(agent_id, now_unix_s, features) is None
        }

    def lacks(self, agent_id: str, now_unix_s: float, features: Features | None) -> Waiting | None:
        """Why this robot does not count, or None; without `features` any will do."""
        lacking = self._lacks_data(agent_id, now_unix_s)
        if lacking is not None:
            return lacking
        status = self._members[agent_id].status
        if features is not None and status.features != features:
            return waiting(Reason.ROBOT_OTHER_FEATURES, robot=agent_id)
        unseen = sorted(self._cameras - status.cameras.keys())
        if unseen:
            return waiting(Reason.ROBOT_WITHOUT_CAMERA, robot=agent_id, camera=unseen[0])
        return None

    def _lacks_data(self, agent_id: str, now_unix_s: float) -> Waiting | None:
        member = self._members.get(agent_id)
        if member is None or not member.is_connected(now_unix_s):
            return waiting(Reason.ROBOT_AWAY, robot=agent_id)
        status = member.status
        if status.paused:
            return waiting(Reason.ROBOT_PAUSED, robot=agent_id)
        if not status.data_plane:
            return waiting(Reason.ROBOT_WITHOUT_FLOWER, robot=agent_id)
        if status.episodes < self._min_episodes:
            have, need = status.episodes, self._min_episodes
            return waiting(Reason.ROBOT_FEW_EPISODES, robot=agent_id, have=have, need=need)
        if not status.has_sketch or status.features is None:
            return waiting(Reason.ROBOT_WITHOUT_STATISTICS, robot=agent_id)
        return None

    def majority_features(self, now_unix_s: float) -> Features | None:
        """The features most agents with data share; a tie goes to the first by id."""
        counts: dict[str, int] = {}
        first: dict[str, Features] = {}
        for status in self.with_data(now_unix_s).values():
            if status.features is not None:
                key = status.features.model_dump_json()
                counts[key] = counts.get(key, 0) + 1
                first.setdefault(key, status.features)
        if not counts:
            return None
        return first[max(counts, key=lambda key: counts[key])]

    def snapshot(self, now_unix_s: float) -> dict[str, dict[str, object]]:
        """For GET /v1/status: every enrolled agent with its newest status."""
        connected = self.connected(now_unix_s)
        result: dict[str, dict[str, object]] = {}
        for agent_id in sorted(self.enrolled):
            member = self._members.get(agent_id)
            result[agent_id] = {
                "connected": agent_id in connected,
                "heard_s_ago": None
                if member is None
                else round(now_unix_s - member.heard_unix_s, 1),
                "waiting": []
                if member is None
                else [reason.shown() for reason in member.status.waiting],
                "status": None
                if member is None
                else member.status.model_dump(
                    mode="json", exclude={"envelope": True, "held_out": {"__all__": {"episodes"}}}
                ),
            }
        return result
