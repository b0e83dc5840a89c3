"""What an operator may ask for, as sequences of state and control commands.

The order is everywhere the same: ask the state machine (which freezes the trainer at once when
idle is left), then the control process; if that refuses, go back.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from agent.errors import ProcessUnavailable, Refused
from agent.operations.state_machine import MEND, Event, State
from agent.supervisor.supervisor import Supervisor

# The control process answers at once, after a ramp, or after the way to the park pose.
QUICK_S = 5.0
BUS_S = 20.0
RAMP_S = 30.0
PARK_S = 40.0

CalibrationStep = Literal["homing", "range_start", "range_finish"]
Arm = Literal["follower", "leader"]


class Operations:
    """One method an API call; each returns what the reply carries, or raises Refused.

    Commands that change the state are taken one after the other; the emergency stop waits for
    nobody.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._one_at_a_time = asyncio.Lock()

    async def calibrate(self, arm: Arm, step: CalibrationStep) -> dict[str, Any]:
        """One step of calibrating one arm; the person moves it between the steps."""
        async with self._one_at_a_time:
            self._supervisor.event(Event.CALIBRATE)
            return await self._supervisor.command("calibrate", BUS_S, arm=arm, step=step)

    async def teleop_start(self) -> dict[str, Any]:
        """The leader takes command; returns when the follower follows it."""
        async with self._one_at_a_time:
            return await self._begin_teleop("teleop_start")

    async def teleop_stop(self) -> dict[str, Any]:
        """Park, release, go idle."""
        async with self._one_at_a_time:
            self._supervisor.event(Event.TELEOP_STOP)
            return await self._park(energise=False)

    async def park(self) -> dict[str, Any]:
        """Park and release from wherever the arm is; ends teleoperation or a rollout."""
        async with self._one_at_a_time:
            if self._supervisor.state is State.ROLLOUT:
                return await self._disarm()
            energise = self._supervisor.state is State.IDLE
            self._supervisor.event(Event.PARK)
            return await self._park(energise=energise)

    async def record_start(self, task: str) -> dict[str, Any]:
        """Begin an episode, starting teleoperation first if the arm is idle."""
        async with self._one_at_a_time:
            if self._supervisor.state is State.TELEOP:
                return await self._supervisor.command("record_start", RAMP_S, task=task)
            return await self._begin_teleop("record_start", task=task)

    async def record_finish(self) -> dict[str, Any]:
        """Save the episode: it is on the disk when this returns."""
        async with self._one_at_a_time:
            return await self._supervisor.command("record_finish", RAMP_S)

    async def record_discard(self) -> dict[str, Any]:
        """Throw the running episode away."""
        async with self._one_at_a_time:
            return await self._supervisor.command("record_discard", QUICK_S)

    async def rollout_arm(self, policy: str) -> dict[str, Any]:
        """Start inference, load a policy and warm it up; returns when it is ready."""
        async with self._one_at_a_time:
            folder = self._supervisor.store.resolve(policy)
            rearm = self._supervisor.state is State.ROLLOUT
            self._supervisor.event(Event.ROLLOUT_ARM)
            load_s = self._supervisor.config.rollout.load_timeout_s
            try:
                return await self._supervisor.command(
                    "rollout_arm", load_s + BUS_S, folder=str(folder), policy=policy
                )
            except Refused:
                if not rearm:
                    self._supervisor.event(Event.NOT_STARTED)
                raise

    async def rollout_start(self, seconds: float, task: str | None, record: bool) -> dict[str, Any]:
        """Run one episode in the background; returns when the policy has taken command."""
        async with self._one_at_a_time:
            self._armed()
            longest_s = self._supervisor.config.rollout.max_episode_s
            if not 0 < seconds <= longest_s:
                raise Refused(f"seconds must be above 0 and at most {longest_s:.0f}")
            return await self._supervisor.command(
                "rollout_start", RAMP_S, seconds=seconds, task=task or "rollout", record=record
            )

    async def rollout_stop(self) -> dict[str, Any]:
        """End the running episode; returns when the arm is parked."""
        async with self._one_at_a_time:
            self._armed()
            return await self._supervisor.command("rollout_stop", PARK_S)

    async def rollout_disarm(self) -> dict[str, Any]:
        """End the episode if one runs, stop inference, go idle."""
        async with self._one_at_a_time:
            self._armed()
            return await self._disarm()

    async def estop(self, release: bool) -> dict[str, Any]:
        """Stop where the arm is and hold; with `release`, take the torque away as well."""
        self._supervisor.event(Event.ESTOP)
        return await self._supervisor.command("estop", QUICK_S, release=release)

    async def reset(self) -> dict[str, Any]:
        """Open the ports again, park if the arm is energised, leave fault or emergency stop."""
        async with self._one_at_a_time:
            if self._supervisor.state in (State.TELEOP, State.ROLLOUT):
                self._supervisor.event(Event.RESET)  # refuses, and says why
            result = await self._supervisor.command("reset", PARK_S)
            self._supervisor.event(Event.RESET)
            return result

    async def _begin_teleop(self, command: str, **fields: Any) -> dict[str, Any]:
        self._supervisor.event(Event.TELEOP_START)
        try:
            return await self._supervisor.command(command, RAMP_S, **fields)
        except Refused:
            # The arm may be energised by now: park it. A fault stays a fault.
            if self._supervisor.state is State.TELEOP:
                await self._park(energise=False)
            raise

    async def _park(self, *, energise: bool) -> dict[str, Any]:
        """Have the arm parked and released; idle is reached when this returns.

        Without `energise` an arm that is released already stays where it lies.
        """
        try:
            result = await self._supervisor.command("park", PARK_S, energise=energise)
        except ProcessUnavailable:
            raise  # if it died the state is fault by now; if it is late it may still be moving
        except Refused:
            self._supervisor.event(Event.NOT_STARTED)  # a fault that came first stays
            raise
        self._supervisor.event(Event.RELEASED)
        return result

    async def _disarm(self) -> dict[str, Any]:
        result = await self._supervisor.command("rollout_disarm", PARK_S)
        if self._supervisor.state is State.ROLLOUT:
            self._supervisor.event(Event.ROLLOUT_DISARM)
        return result

    def _armed(self) -> None:
        if self._supervisor.state is not State.ROLLOUT:
            if self._supervisor.state is State.IDLE:
                raise Refused("no rollout is armed; arm a policy first (rollout/arm)")
            raise Refused(f"a rollout is not possible: {MEND[self._supervisor.state]}")
