"""The agent's configuration: one TOML file, checked where it is read.

Every table refuses unknown keys. Paths are taken relative to the folder of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from agent.errors import ConfigError
from agent.places import AGENT_SOCKET, DEFAULT_CONFIG
from host.settings import BadSettings, Settings, Table, load_settings
from policy.errors import BadSpec
from policy.spec import PolicySpec
from robot_io.calibration import JOINTS

FEATURES = tuple(f"{joint}.pos" for joint in JOINTS)  # LeRobot's names of the same six numbers
DEFAULT_CONFIG_PATH = Path(DEFAULT_CONFIG)
MISSING = "write it, or name one by --config"
# Of a policy that one robot trains alone; [policy] wins.
OWN_POLICY: dict[str, Any] = {"learning_rate": 1e-3, "round_decay": 0.85}
MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less its closing zero

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Pose = tuple[float, float, float, float, float, float]
Row = tuple[float, float, float]
type Source = Literal["teleoperation", "rollout", "intervention"]


class RobotConfig(Table):
    """The follower arm. Its calibration lies in state_dir/calibration/<id>.json."""

    type: Literal["so101_follower", "so100_follower"] = "so101_follower"
    """LeRobot's name of the arm."""
    port: str
    """Serial port; a name in /dev/serial/by-id outlives a replug."""
    id: Name = "follower"
    """Names the calibration file, and the robot in what it records."""
    park_pose: Pose = (0.0, -97.0, 89.0, 66.0, 0.0, 20.0)
    """Joint units: folded back over the base and low, where it stays without torque."""


class TeleopConfig(Table):
    """The leader arm, if there is one. Its calibration lies in state_dir/calibration/<id>.json."""

    type: Literal["so101_leader", "so100_leader"] = "so101_leader"
    """LeRobot's name of the arm."""
    port: str
    """Serial port, another than robot.port."""
    id: Name = "leader"
    """Names the calibration file, another than robot.id."""


class CameraSettings(Table):
    """One camera: an MJPEG address (http…), a device path, or an index."""

    source: str | int
    """An MJPEG address (http…), a device path, or an index."""
    width: int = Field(default=640, ge=16, le=4096)
    """Pixels."""
    height: int = Field(default=480, ge=16, le=4096)
    """Pixels."""
    fps: float = Field(default=30.0, gt=0, le=240)
    """Frames a second that are asked of the camera."""


class TrackerSettings(Table):
    """Finds one saturated object on the table in one camera's picture."""

    camera: Name
    """In whose picture to look."""
    object: Name = "cube"
    """Names the numbers that come out: `cube.x_m`, `cube.y_m`."""
    hue_min_deg: float = Field(ge=0, le=360)
    """Hue of the object, from …"""
    hue_max_deg: float = Field(ge=0, le=360)
    """… to; smaller than the minimum, the range wraps over red."""
    saturation_min: float = Field(default=0.5, ge=0, le=1)
    """Least saturation, 0 to 1."""
    value_min: float = Field(default=0.2, ge=0, le=1)
    """Least brightness, 0 to 1."""
    min_area_px: int = Field(default=4, ge=1)
    """Smaller spots are noise."""
    homography: tuple[Row, Row, Row]
    """Three rows: pixel (u, v, 1) to metres (x, y) in the arm's base frame."""


class ControlConfig(Table):
    """The control loop. Speeds are in joint units (degrees; gripper: per cent) a second."""

    fps: float = Field(default=30.0, ge=1, le=200)
    """Rate of the loop, of recording, and of policies."""
    max_missed_reads: int = Field(default=3, ge=0, le=30)
    """In a row; one more is a fault. The pose is held meanwhile."""
    ramp_s: float = Field(default=0.5, ge=0.05, le=10)
    """Shortest handover to whoever takes command."""
    max_velocity_per_s: float = Field(default=360.0, gt=0, le=1000)
    """Fastest that a goal may move."""
    park_speed_per_s: float = Field(default=60.0, gt=0, le=180)
    """Fastest on the way to the park pose."""
    max_step: float = Field(default=60.0, gt=0, le=360)
    """Farthest that a goal may lie from where the joint is."""
    first_move_max: float = Field(default=90.0, gt=0, le=360)
    """A first goal farther away is refused, not driven to."""
    first_move_speed_per_s: float = Field(default=60.0, gt=0, le=180)
    """Fastest during a handover."""
    camera_max_age_s: float = Field(default=1.0, gt=0, le=10)
    """An older picture counts as missing."""
    realtime_priority: int = Field(default=20, ge=0, le=80)
    """SCHED_FIFO priority of the loop; 0 leaves the scheduler be."""


class RecordingConfig(Table):
    """The episode journal."""

    jpeg_quality: int = Field(default=90, ge=10, le=100)
    """For cameras that give no JPEG themselves."""
    min_free_mb: int = Field(default=500, ge=0)
    """No episode begins with less space on the disk."""
    queue_ticks: int = Field(default=300, ge=10)
    """Ticks that may wait for the disk; 300 are ten seconds at 30 Hz."""


class TrainingConfig(Table):
    """Local training, done while the robot is idle."""

    enabled: bool = True
    """Whether this robot trains at all."""
    threads: int = Field(default=1, ge=1, le=256)
    """Of torch."""
    baseline_steps: int = Field(default=0, ge=0)
    """Steps of a never-federated copy, for comparison; 0: none."""
    local_steps: int = Field(default=1200, ge=1, le=10**7)
    """Of `armada train --local`."""
    publish_every_s: float = Field(default=2.0, gt=0)
    """How often what was gained is put on the disk."""
    held_out_every: int = Field(default=5, ge=2)
    """One episode in so many is never trained on."""
    min_episodes: int = Field(default=2, ge=1)
    """Training waits for so many."""
    nice: int = Field(default=10, ge=0, le=19)
    """Priority beside other programs; 19 is the lowest."""
    sources: tuple[Source, ...] = Field(default=("teleoperation", "intervention"), min_length=1)
    """Whose motion is learned from: a person's, a policy's own, a person's who corrected one."""
    failed_episodes: bool = False
    """Whether episodes that were judged a failure are learned from as well."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto: on the fastest that there is."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of forward passes, weights always are float32; auto: bfloat16 on CUDA that has it."""
    micro_batch: int = Field(default=0, ge=0)
    """Frames at once, whose gradients add up to the batch's; 0: all, fewer when memory runs out."""
    memory_limit_mb: int = Field(default=0, ge=0)
    """Most memory that the trainer takes on the host; 0: no limit."""
    cache_gb: float = Field(default=20.0, ge=0)
    """Most disk for decoded pictures; what is beyond is decoded each time that it is drawn."""
    give_back_below_mb: int = Field(default=512, ge=0)
    """The trainer is ended while the arm is in use and the host has less memory than this left."""


class FederationConfig(Table):
    """Membership of a fleet: the bundle that enrolment wrote."""

    bundle: Path
    """Folder of the enrolment bundle."""
    local_work: Literal["anytime", "window"] = "anytime"
    """Train whenever idle, or inside windows alone."""


class RolloutConfig(Table):
    """Asynchronous inference."""

    threads: int = Field(default=1, ge=1, le=256)
    """Of ONNX Runtime."""
    latency_percentile: float = Field(default=95.0, ge=50, le=100)
    """Of the measured latencies, the one that is planned with."""
    blend_ticks: int = Field(default=8, ge=0, le=100)
    """Over how many ticks a new chunk takes over from the old one."""
    max_hold_s: float = Field(default=1.0, gt=0, le=30)
    """Longest wait for a late chunk; then a fault."""
    load_timeout_s: float = Field(default=30.0, gt=0)
    """For loading a policy and warming it up."""
    max_episode_s: float = Field(default=120.0, gt=0)
    """No rollout is longer."""
    lease_s: float = Field(default=1.0, ge=0.3, le=10)
    """Not heard of its operator for so long, a rollout holds, then parks."""


class TrialConfig(Table):
    """What a new release goes through before it is trusted with the arm."""

    shadow_s: float = Field(default=0.0, ge=0, le=86400)
    """It first predicts beside whoever commands for so long, never commanding; 0: not at all."""
    canary_episodes: int = Field(default=3, ge=0, le=1000)
    """So many episodes it then drives with reduced limits; 0: none."""
    canary_limits: float = Field(default=0.5, gt=0, le=1)
    """Share of control.max_velocity_per_s and control.max_step that a canary gets."""
    max_clamped: float = Field(default=0.5, gt=0, le=1)
    """Share of an episode's ticks that may meet those limits; more rolls the canary back."""


class PathsConfig(Table):
    """Where the agent keeps what it owns."""

    state_dir: Path
    """Journals, datasets, policies, logs and sockets."""


class AgentConfig(Settings):
    """The whole file, and the names that follow from it."""

    model_config = SettingsConfigDict(env_prefix="ARMADA_AGENT_")

    robot: RobotConfig
    teleop: TeleopConfig | None = None
    cameras: dict[Name, CameraSettings] = Field(default_factory=dict)
    tracker: TrackerSettings | None = None
    control: ControlConfig = ControlConfig()
    recording: RecordingConfig = RecordingConfig()
    training: TrainingConfig = TrainingConfig()
    federation: FederationConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    trial: TrialConfig = TrialConfig()
    policy: dict[str, Any] = Field(default_factory=dict)
    """What `armada train --local` trains: keys of the coordinator's [policy], below. Absent: what a
    tracker finds or, without one, every camera's pictures."""
    paths: PathsConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.tracker is not None and self.tracker.camera not in self.cameras:
            known = ", ".join(sorted(self.cameras)) or "none"
            raise ValueError(
                f"tracker.camera {self.tracker.camera!r} is not a camera (known: {known})"
            )
        if self.teleop is not None and self.teleop.port == self.robot.port:
            raise ValueError(f"robot.port and teleop.port are both {self.robot.port!r}")
        if self.teleop is not None and self.teleop.id == self.robot.id:
            raise ValueError(
                f"robot.id and teleop.id are both {self.robot.id!r}: they share one calibration"
            )
        if self.policy:
            try:
                self.own_policy()
            except BadSpec as error:
                raise ValueError(f"[policy]: {error}") from error
        length = len(bytes(self.inference_socket))
        if length > MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"paths.state_dir is too long by {length - MAX_SOCKET_PATH_BYTES} bytes "
                "for a Unix socket in it"
            )
        return self

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of observation.state, LeRobot's (`shoulder_pan.pos` …)."""
        return FEATURES

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of action: the same six joints."""
        return FEATURES

    @property
    def environment_names(self) -> tuple[str, ...]:
        """Names of observation.environment_state, `cube.x_m`, `cube.y_m`; empty without tracker."""
        if self.tracker is None:
            return ()
        return (f"{self.tracker.object}.x_m", f"{self.tracker.object}.y_m")

    @property
    def camera_shapes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each camera, in the order of the file."""
        return {name: (camera.height, camera.width) for name, camera in self.cameras.items()}

    def own_policy(self) -> PolicySpec:
        """The policy that this robot trains alone: `[policy]` over what its sensors give.

        Raises BadSpec, also for a robot with neither camera nor tracker.
        """
        cameras = [
            {"name": name, "height": height, "width": width}
            for name, (height, width) in self.camera_shapes.items()
        ]
        given = {
            **OWN_POLICY,
            "environment_names": list(self.environment_names),
            "cameras": [] if self.tracker is not None else cameras,
        }
        fixed = {
            "state_names": list(self.state_names),
            "action_names": list(self.action_names),
            "fps": round(self.control.fps),
        }
        return PolicySpec.from_json({**given, **self.policy, **fixed})

    @property
    def state_dir(self) -> Path:
        """Root of all that the agent keeps."""
        return self.paths.state_dir

    @property
    def calibration_dir(self) -> Path:
        """LeRobot calibration files, one an arm."""
        return self.state_dir / "calibration"

    @property
    def follower_calibration(self) -> Path:
        """The follower's calibration file."""
        return self.calibration_dir / f"{self.robot.id}.json"

    @property
    def leader_calibration(self) -> Path | None:
        """The leader's calibration file, None without a leader."""
        return None if self.teleop is None else self.calibration_dir / f"{self.teleop.id}.json"

    @property
    def journal_dir(self) -> Path:
        """Episode journals."""
        return self.state_dir / "journal"

    @property
    def dataset_dir(self) -> Path:
        """The LeRobotDataset."""
        return self.state_dir / "dataset"

    @property
    def training_dir(self) -> Path:
        """The exchange between the trainer and the federation process."""
        return self.state_dir / "training"

    @property
    def policies_dir(self) -> Path:
        """The policy store."""
        return self.state_dir / "policies"

    @property
    def run_dir(self) -> Path:
        """Sockets."""
        return self.state_dir / "run"

    @property
    def log_dir(self) -> Path:
        """One log file a child process."""
        return self.state_dir / "log"

    @property
    def agent_socket(self) -> Path:
        """The API's socket."""
        return self.state_dir / AGENT_SOCKET

    @property
    def inference_socket(self) -> Path:
        """The socket between the control loop and the inference process."""
        return self.run_dir / "inference.sock"

    @property
    def shadow_socket(self) -> Path:
        """The socket between the control loop and the policy that only predicts."""
        return self.run_dir / "shadow.sock"


def load_config(path: Path | str) -> AgentConfig:
    """Read and check the agent's TOML file and what the environment adds; see host.settings.

    Raises ConfigError with one line: the file, the key, and what is allowed.
    """
    try:
        return load_settings(AgentConfig, Path(path), MISSING)
    except BadSettings as error:
        raise ConfigError(str(error)) from error
