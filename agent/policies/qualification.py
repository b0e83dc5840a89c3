"""May a policy drive this robot? `python -m agent.policies.qualification DIR [--config FILE]`.

A downloaded policy is run in a child process with a time limit: one that hangs, eats its memory or
crashes the runtime is a failed qualification with a reason. It qualifies when its files match the
manifest, it fits this robot's features, cameras and rate, its golden observations give the golden
actions within the manifest's tolerance, and it is quick enough for the length of its chunks
(`chunk_rule`). A refusal is for the content, which no repetition mends, for damage of its files, or
for the load of this host: too slow, out of memory, out of time. One line of JSON on stdout; exit
code 0 when it qualified, 1 when not.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from agent.config import load_config
from agent.errors import ConfigError
from agent.policies.chunk_rule import ChunkRule
from agent.policies.compatibility import RobotSignature, incompatibilities
from host.children import exit_words, module_command
from policy.errors import BadPolicyFolder, DamagedPolicyFolder, PolicyError
from policy.release.folder import PolicyFolder, read_policy_folder

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 120.0
_LATENCY_RUNS = 100
_LATENCY_S = 3.0
# ONNX Runtime's words where it could not allocate; it has no exception of its own for that.
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory")

Cause = Literal["content", "damage", "load"]
# The kernel's killer of those who eat memory, and this child's own alarm.
_LOAD_SIGNALS = (signal.SIGKILL, signal.SIGALRM)


@dataclass(frozen=True)
class Qualification:
    """The verdict. Errors in raw joint units; None where it was not got so far.

    `cause` of a refusal: content outweighs damage, and damage load.
    """

    ok: bool
    version: int | None = None
    max_abs_error: float | None = None
    latency_p99_ms: float | None = None
    reasons: tuple[str, ...] = ()
    cause: Cause = "content"

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Qualification:
        """Read `to_json`'s line. Raises ValueError."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004 - the text is wrong, not a type
        if data.get("cause", "content") not in ("content", "damage", "load"):
            raise ValueError(f"no cause is called {data['cause']!r}")
        try:
            return cls(**{**data, "reasons": tuple(data["reasons"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a qualification: {error}") from error


def qualify(
    policy_dir: Path,
    config_path: Path | None = None,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Qualification:
    """Judge a policy folder in a child process; without a config, this robot is left out.

    Never raises for what the policy does; OSError when the child cannot be started.
    """
    arguments = [str(policy_dir), "--here", "--timeout", str(timeout_s)]
    if config_path is not None:
        arguments += ["--config", str(config_path)]
    command = module_command("agent.policies.qualification", *arguments)
    try:
        done = subprocess.run(  # its stderr goes where ours goes, and it freezes when we freeze
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return _failed(f"the policy did not finish its trial within {timeout_s:g} s", "load")
    if done.returncode < 0:
        cause: Cause = "load" if -done.returncode in _LOAD_SIGNALS else "content"
        return _failed(f"the policy crashed its trial ({exit_words(done.returncode)})", cause)
    try:
        return Qualification.from_json(done.stdout)
    except ValueError:
        return _failed(f"the policy's trial ended without a verdict (exit {done.returncode})")


def examine(
    policy_dir: Path,
    robot: RobotSignature | None,
    threads: int = 1,
    rule: ChunkRule = ChunkRule(),  # noqa: B008 - frozen
) -> Qualification:
    """Judge a policy folder in this process, which the policy may crash or hang."""
    try:
        folder = read_policy_folder(policy_dir)
    except DamagedPolicyFolder as error:
        return _failed(str(error), "damage")
    except BadPolicyFolder as error:
        return _failed(str(error))
    version = folder.manifest.version
    reasons = list(incompatibilities(folder.spec, robot)) if robot is not None else []
    if reasons:
        return Qualification(ok=False, version=version, reasons=tuple(reasons))
    try:
        return _try_out(folder, threads, rule)
    except MemoryError:
        return _failed("the policy's trial found no memory on this host", "load")


def _try_out(folder: PolicyFolder, threads: int, rule: ChunkRule) -> Qualification:
    # ONNX Runtime is loaded here, so that the parent, which only starts a child, stays small.
    from agent.policies.graph import measure_latency_ms, percentile
    from policy.release.trial import golden_complaint, goldens_of, load_graph, worst_golden_error

    spec, version = folder.spec, folder.manifest.version
    reasons: list[str] = []
    try:
        policy = load_graph(folder, threads)
        goldens = goldens_of(folder)
        worst = worst_golden_error(policy, goldens)
        times = measure_latency_ms(
            policy, goldens[0].observation, runs=_LATENCY_RUNS, within_s=_LATENCY_S
        )
    except PolicyError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        no_memory = any(words in str(error) for words in _NO_MEMORY)
        cause: Cause = "load" if no_memory else "content"
        return Qualification(ok=False, version=version, reasons=(reason,), cause=cause)
    latency_ms = percentile(times, 99)
    if complaint := golden_complaint(folder, worst):
        reasons.append(complaint)
    cause = "content" if reasons else "load"
    slow = rule.shortfall(latency_ms, spec.fps, spec.chunk_size)
    if slow is not None:
        reasons.append(slow)
    return Qualification(
        ok=not reasons,
        version=version,
        max_abs_error=worst,
        latency_p99_ms=latency_ms,
        reasons=tuple(reasons),
        cause=cause,
    )


def _failed(reason: str, cause: Cause = "content") -> Qualification:
    return Qualification(ok=False, reasons=(reason,), cause=cause)


def _limit_this_process(timeout_s: float) -> None:
    """Bound this child also when it was started by hand, and let it be first to lack memory."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(timeout_s) + 1)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError as error:
        log.warning("oom_score_adj cannot be set: %s", error)


def _here(policy_dir: Path, config_path: Path | None) -> Qualification:
    if config_path is None:
        return examine(policy_dir, None)
    try:
        config = load_config(config_path)
    except ConfigError as error:
        return _failed(str(error))
    rule = ChunkRule(blend_ticks=config.rollout.blend_ticks)
    return examine(policy_dir, RobotSignature.of(config), config.rollout.threads, rule)


def main(argv: list[str]) -> int:
    """Judge one folder; see the module."""
    parser = argparse.ArgumentParser(prog="python -m agent.policies.qualification")
    parser.add_argument("dir", type=Path, help="folder with manifest.json and policy.onnx")
    parser.add_argument("--config", type=Path, help="the agent's TOML file")
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="seconds")
    parser.add_argument("--here", action="store_true", help="in this process, not in a child")
    arguments: Any = parser.parse_args(argv)
    if arguments.here:
        _limit_this_process(arguments.timeout)
        verdict = _here(arguments.dir, arguments.config)
    else:
        verdict = qualify(arguments.dir, arguments.config, timeout_s=arguments.timeout)
    sys.stdout.write(verdict.to_json() + "\n")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
