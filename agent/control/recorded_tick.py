"""Takes the loop's ticks into the running episode: a subscriber."""

from __future__ import annotations

from agent.control.loop import Tick
from agent.recording.journal import Sample
from agent.recording.session import RecordingSession


def record_tick(recording: RecordingSession, tick: Tick, *, intervention: bool = False) -> None:
    """One tick of an episode; a camera without a fresh picture ends it."""
    if not recording.active:
        return
    if tick.missing:
        recording.fail(tick.missing[0])
        return
    recording.append(sample_of(tick, intervention), tick.observation.frames)


def sample_of(tick: Tick, intervention: bool) -> Sample:
    """What the journal keeps of a tick."""
    observation, reading = tick.observation, tick.reading
    return Sample(
        tick=observation.tick,
        t_observed_s=observation.t_s,
        t_sent_s=tick.t_sent_s,
        state=observation.state,
        action=tick.sent,
        requested=tick.requested,
        environment=observation.environment,
        camera_sequence={name: frame.sequence for name, frame in observation.frames.items()},
        telemetry={
            "velocity": reading.velocity.tolist(),
            "load": reading.load.tolist(),
            "voltage_v": reading.voltage_v.tolist(),
            "temperature_c": reading.temperature_c.tolist(),
            "current_ma": reading.current_ma.tolist(),
            "errors": [int(error) for error in reading.errors],
        },
        intervention=intervention,
    )
