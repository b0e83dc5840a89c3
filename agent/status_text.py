"""The agent's answers as lines for people. Pure; a machine reads the JSON."""

from __future__ import annotations

from typing import Any


def policy_lines(table: dict[str, Any]) -> list[str]:
    """The policies for people, one row each."""
    if not table["policies"]:
        return ["no policy is on this robot yet"]
    rows = [("VERSION", "STATE", "ROLE", "WHY")]
    rows += [(row["version"], row["state"], row["role"], row["why"]) for row in table["policies"]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    if table["pinned"]:
        lines.append(
            f"{table['active']} is pinned; `armada policy use newest` follows the releases again"
        )
    return lines


def status_lines(status: dict[str, Any]) -> list[str]:
    """The status for people."""
    ready = "ready" if status["ready"] else "NOT READY"
    lines = [f"{status['robot_id']}: {status['state']}, {ready}"]
    lines += [f"  ! {fault}" for fault in status["faults"]]
    recording = status["recording"]
    text = f"  recorded  {recording['episodes']} episodes, {recording['frames']} frames"
    if recording.get("active"):
        text += f"; recording {recording['task']!r}, {recording['current_frames']} frames"
    lines.append(text)
    if status["rate_hz"] is not None:
        missed = status["missed_deadlines"]
        lines.append(f"  loop      {status['rate_hz']:.1f} Hz held, {missed} deadlines missed")
    rollout = status["rollout"]
    policy = status["policy"] if status["policy"] is not None else "none"
    text = f"  policy    active: {policy}"
    if rollout.get("running"):
        text += f"; {rollout['policy']} is running, {rollout['ticks']} ticks"
        text += f", {rollout['holds']} held"
    elif rollout.get("outcome"):
        text += f"; last rollout of {rollout['policy']}: {rollout['outcome']}"
    lines.append(text)
    lines += [f"  {each['about']:<10}{each['text']}" for each in status["waiting"]]
    if not any(each["about"] == "training" for each in status["waiting"]):
        lines.append("  training  under way")
    local = (status.get("trainer") or {}).get("local")
    if local is not None and local["state"] == "ready":
        lines.append(f"  local     {local['steps']} steps; armada rollout --policy local uses it")
    elif local is not None and local["state"] == "refused":
        lines.append(f"  ! local policy: {local['refusal']}")
    ingest = status.get("ingest", {})
    if ingest.get("refused"):
        reason = list(ingest["refused"].values())[-1]
        count = ingest["refused_episodes"]
        lines.append(f"  ! dataset: {count} journals refused and kept, the last: {reason}")
    federation = status.get("federation")
    if isinstance(federation, dict) and federation.get("error"):
        lines.append(f"  ! federation: {federation['error']}")
    for name, row in status["processes"].items():
        reason = row.get("reason")
        if row["state"] == "off" and row["pid"] is None and not reason:
            continue
        again = f", restarted {row['restarts']} times" if row["restarts"] else ""
        lines.append(f"  {name:<11}{row['state']}{again}{f': {reason}' if reason else ''}")
    return lines
