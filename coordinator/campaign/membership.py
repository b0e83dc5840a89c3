"""The roster: what each enrolled agent last said, and who counts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import AgentStatus, Features

# Three statuses missed: the agent is away although its will has not come.
STATUS_PATIENCE_S = 10.0


@dataclass(frozen=True)
class RosterEntry:
    """The newest status of one agent, and when it came (coordinator's clock)."""

    status: AgentStatus
    heard_unix_s: float


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
            if member.status.online and now_unix_s - member.heard_unix_s <= STATUS_PATIENCE_S
        }

    def with_data(self, now_unix_s: float) -> dict[str, AgentStatus]:
        """Connected agents, not paused, reachable by Flower, with episodes, sketch and features."""
        return {
            agent_id: status
            for agent_id, status in self.connected(now_unix_s).items()
            if not status.paused
            and status.data_plane
            and status.episodes >= self._min_episodes
            and status.has_sketch
            and status.features is not None
        }

    def fitting(self, features: Features, now_unix_s: float) -> dict[str, AgentStatus]:
        """Those with data, exactly `features`, and every camera that the policy sees."""
        return {
            agent_id: status
            for agent_id, status in self.with_data(now_unix_s).items()
            if status.features == features and self._cameras <= status.cameras.keys()
        }

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
                "status": None
                if member is None
                else member.status.model_dump(
                    mode="json", exclude={"envelope": True, "held_out": {"__all__": {"episodes"}}}
                ),
            }
        return result
