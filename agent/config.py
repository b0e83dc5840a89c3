"""The agent's configuration: one TOML file, checked where it is read.

Every table refuses unknown keys. Paths are taken relative to the folder of the file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.errors import ConfigError
from robot_io.calibration import JOINTS

FEATURES = tuple(f"{joint}.pos" for joint in JOINTS)  # LeRobot's names of the same six numbers
DEFAULT_CONFIG_PATH = Path("/etc/armada/agent.toml")
MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less its closing zero

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Pose = tuple[float, float, float, float, float, float]
Row = tuple[float, float, float]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RobotConfig(_Table):
    """The follower arm. Its calibration lies in state_dir/calibration/<id>.json."""

    type: Literal["so101_follower", "so100_follower"] = "so101_follower"
    port: str
    id: Name = "follower"
    # Folded back over the base and low, where the arm stays when torque is taken away.
    park_pose: Pose = (0.0, -97.0, 89.0, 66.0, 0.0, 20.0)


class TeleopConfig(_Table):
    """The leader arm, if there is one. Its calibration lies in state_dir/calibration/<id>.json."""

    type: Literal["so101_leader", "so100_leader"] = "so101_leader"
    port: str
    id: Name = "leader"


class CameraSettings(_Table):
    """One camera: an MJPEG address (http…), a device path, or an index."""

    source: str | int
    width: int = Field(default=640, ge=16, le=4096)
    height: int = Field(default=480, ge=16, le=4096)
    fps: float = Field(default=30.0, gt=0, le=240)


class TrackerSettings(_Table):
    """Finds one saturated object on the table in one camera's picture."""

    camera: Name
    object: Name = "cube"
    hue_min_deg: float = Field(ge=0, le=360)
    hue_max_deg: float = Field(ge=0, le=360)  # smaller than the minimum: the range wraps over red
    saturation_min: float = Field(default=0.5, ge=0, le=1)
    value_min: float = Field(default=0.2, ge=0, le=1)
    min_area_px: int = Field(default=4, ge=1)
    homography: tuple[Row, Row, Row]  # pixel (u, v, 1) -> metres (x, y) in the arm's base frame


class ControlConfig(_Table):
    """The control loop. Speeds are in joint units (degrees; gripper: per cent) a second."""

    fps: float = Field(default=30.0, ge=1, le=200)
    max_missed_reads: int = Field(default=3, ge=0, le=30)
    ramp_s: float = Field(default=0.5, ge=0.05, le=10)
    max_velocity_per_s: float = Field(default=360.0, gt=0, le=1000)
    park_speed_per_s: float = Field(default=60.0, gt=0, le=180)
    max_step: float = Field(default=60.0, gt=0, le=360)  # of a goal from where the joint is
    first_move_max: float = Field(default=90.0, gt=0, le=360)  # farther is refused, not driven to
    first_move_speed_per_s: float = Field(default=60.0, gt=0, le=180)  # a handover is no faster
    camera_max_age_s: float = Field(default=1.0, gt=0, le=10)
    realtime_priority: int = Field(default=20, ge=0, le=80)  # SCHED_FIFO; 0 leaves the scheduler be


class RecordingConfig(_Table):
    """The episode journal."""

    image_format: Literal["jpeg"] = "jpeg"
    jpeg_quality: int = Field(default=90, ge=10, le=100)  # for cameras that give no JPEG themselves
    min_free_mb: int = Field(default=500, ge=0)
    queue_ticks: int = Field(default=300, ge=10)  # ten seconds of 30 Hz between loop and disk


class TrainingConfig(_Table):
    """Local training, done while the robot is idle."""

    enabled: bool = True
    threads: int = Field(default=1, ge=1, le=256)
    baseline_steps: int = Field(default=0, ge=0)  # a never-federated copy, for comparison; 0 = none
    publish_every_s: float = Field(default=2.0, gt=0)
    held_out_every: int = Field(default=5, ge=2)  # every k-th episode is never trained on
    min_episodes: int = Field(default=2, ge=1)
    nice: int = Field(default=10, ge=0, le=19)


class FederationConfig(_Table):
    """Membership of a fleet: the bundle that enrolment wrote."""

    bundle: Path
    local_work: Literal["anytime", "window"] = "anytime"


class RolloutConfig(_Table):
    """Asynchronous inference."""

    threads: int = Field(default=1, ge=1, le=256)
    latency_percentile: float = Field(default=95.0, ge=50, le=100)
    blend_ticks: int = Field(default=5, ge=0, le=100)
    max_hold_s: float = Field(default=1.0, gt=0, le=30)
    load_timeout_s: float = Field(default=30.0, gt=0)
    max_episode_s: float = Field(default=120.0, gt=0)


class PathsConfig(_Table):
    """Where the agent keeps what it owns."""

    state_dir: Path


class AgentConfig(_Table):
    """The whole file, and the names that follow from it."""

    robot: RobotConfig
    teleop: TeleopConfig | None = None
    cameras: dict[Name, CameraSettings] = Field(default_factory=dict)
    tracker: TrackerSettings | None = None
    control: ControlConfig = ControlConfig()
    recording: RecordingConfig = RecordingConfig()
    training: TrainingConfig = TrainingConfig()
    federation: FederationConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
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
        return self.run_dir / "agent.sock"

    @property
    def inference_socket(self) -> Path:
        """The socket between the control loop and the inference process."""
        return self.run_dir / "inference.sock"


def load_config(path: Path | str) -> AgentConfig:
    """Read and check the agent's TOML file.

    Raises ConfigError with one line: the file, the key, and what is allowed.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; write it, or name one by --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    _resolve(table, "paths", "state_dir", path.parent)
    _resolve(table, "federation", "bundle", path.parent)
    try:
        return AgentConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error


def _resolve(table: dict[str, Any], section: str, key: str, folder: Path) -> None:
    """Make a path of the file absolute, relative to the file's folder."""
    part = table.get(section)
    if isinstance(part, dict) and isinstance(part.get(key), str):
        part[key] = str(folder.resolve() / Path(part[key]).expanduser())


def _first_line(error: ValidationError) -> str:
    """The first complaint of pydantic as one line: key, what is wrong, what is allowed."""
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"] if part != "[key]"]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_beside(location)) or "none"
        return f"unknown key {key}; allowed here: {allowed}"
    if problem["type"] == "missing":
        return f"key {key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {problem['input']!r}: {message[:1].lower()}{message[1:]}"


_TABLES: dict[str, type[_Table]] = {
    "robot": RobotConfig,
    "teleop": TeleopConfig,
    "cameras": CameraSettings,
    "tracker": TrackerSettings,
    "control": ControlConfig,
    "recording": RecordingConfig,
    "training": TrainingConfig,
    "federation": FederationConfig,
    "rollout": RolloutConfig,
    "paths": PathsConfig,
}


def _keys_beside(location: list[str]) -> list[str]:
    """The keys that are allowed in the table in which `location` stands."""
    model = AgentConfig if len(location) <= 1 else _TABLES.get(location[0])
    return [] if model is None else list(model.model_fields)
