"""A chunk by ONNX beside LeRobot's own step, on this host, in one run.

Untrained policies of the published sizes: ACT (51.6 M parameters, chunk 100, two 640x480 cameras,
frozen batch norm) and SmolVLA (450 M, chunk 50, ten Euler steps, two 640x480 cameras; configuration
and tokenizer are made here). LeRobot's step is its processors and `select_action` with an empty
queue. The contestants run in turn, each in a process of its own, so that all meet the same load and
none holds another's memory. Both the time on the wall and the processor's are told: where others
use the machine, only the latter can be compared. Int8 is calibrated on made-up pictures here; what
it costs in accuracy on a robot's own frames is measured there (`agent/training/host_measurement`).

    python benchmarks/inference.py [--policy act|smolvla] [--threads 2] [--runs 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HEIGHT, WIDTH = 480, 640
STD_DEG = 30.0
TASK = "pick up the red cube"
WORDS = ("pick", "up", "the", "red", "cube")
# Of SmolVLM2-500M-Video-Instruct, of which SmolVLA uses 16 layers.
TEXT = {
    "model_type": "llama",
    "vocab_size": 49280,
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 16,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 64,
}
VISION = {
    "model_type": "smolvlm_vision",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}


def spec_of(kind: str, vlm: str) -> Any:
    from policy.spec import PolicySpec

    cameras = [{"name": name, "height": HEIGHT, "width": WIDTH} for name in ("top", "wrist")]
    common = {"kind": kind, "state_names": JOINTS, "action_names": JOINTS, "fps": 30}
    own: dict[str, Any] = {"vlm_sha256": vlm, "vlm_weights": False}
    if kind == "act":
        own = {
            "chunk_size": 100,
            "dim_model": 512,
            "n_heads": 8,
            "dim_feedforward": 3200,
            "n_encoder_layers": 4,
            "use_vae": True,
            "n_vae_encoder_layers": 4,
            "latent_dim": 32,
            "backbone": "resnet18",
            "backbone_norm": "frozen",
        }
    return PolicySpec.from_json({**common, "cameras": cameras, **own})


def build(kind: str, vlm: str) -> tuple[Any, Any, Any]:
    from policy.build import build_policy
    from policy.statistics import FeatureScale, Normalizer

    spec = spec_of(kind, vlm)
    scales = {
        name: FeatureScale(names=parts, mean=(0.0,) * len(parts), std=(STD_DEG,) * len(parts))
        for name, parts in spec.vectors.items()
    }
    normalizer = Normalizer(features=scales)
    policy = build_policy(spec, normalizer, seed=0)
    return policy.float(), spec, normalizer


def pictures(seed: int) -> dict[str, Any]:
    """Coarse random pictures: noise of single pixels would leave every filter near zero."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (2, HEIGHT // 40, WIDTH // 40, 3), dtype=np.uint8)
    large = coarse.repeat(40, axis=1).repeat(40, axis=2)
    seen: dict[str, Any] = {
        f"observation.images.{name}": picture
        for name, picture in zip(("top", "wrist"), large, strict=True)
    }
    state = STD_DEG * random.standard_normal(len(JOINTS))
    return seen | {"observation.state": state.astype(np.float32)}


def write_vlm(artefacts: Path) -> str:
    """A folder as SmolVLM's, of its real sizes, with a tokenizer of five words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from policy.artefacts import artefact_digest

    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    image = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokens = [*special.values(), *image.values(), "\n", *WORDS]
    tokenizer = Tokenizer(
        models.WordLevel({token: row for row, token in enumerate(tokens)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = artefacts / "vlm"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    sides = {"longest_edge": VISION["image_size"]}
    files: dict[str, Any] = {
        "config.json": {
            "model_type": "smolvlm",
            "architectures": ["SmolVLMForConditionalGeneration"],
            "image_token_id": tokens.index("<image>"),
            "pad_token_id": tokens.index("<pad>"),
            "scale_factor": 4,
            "text_config": TEXT,
            "vision_config": VISION,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "extra_special_tokens": image,
        },
        "preprocessor_config.json": {
            "image_processor_type": "SmolVLMImageProcessor",
            "processor_class": "SmolVLMProcessor",
            "size": sides,
            "max_image_size": sides,
        },
        "processor_config.json": {"processor_class": "SmolVLMProcessor", "image_seq_len": 64},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    digest = artefact_digest(folder)
    folder.rename(artefacts / digest)
    return digest


def export(kind: str, vlm: str, folder: Path) -> None:
    """The float graph, and int8 beside it. In a process of its own: torch takes gigabytes."""
    from policy.export import onnx_model
    from policy.int8 import dynamic_int8, static_int8
    from policy.kinds import kind_of
    from policy.release.layout import write_files, write_graph

    policy, spec, normalizer = build(kind, vlm)
    model = onnx_model(policy, spec, normalizer, {"spec": spec.to_json()})
    write_graph(folder / "float.onnx", model)
    write_files(folder, kind_of(kind).files(spec))
    del policy, model
    if kind == "smolvla":
        dynamic_int8(folder / "float.onnx", folder / "int8.onnx")
        return
    seen = [{name: value[None] for name, value in pictures(row).items()} for row in range(1, 9)]
    static_int8(folder / "float.onnx", folder / "int8.onnx", seen)


def lerobot(kind: str, vlm: str, threads: int, observation: dict[str, Any]) -> Callable[[], Any]:
    import torch

    from policy.build import build_processors

    torch.set_num_threads(threads)
    policy, spec, normalizer = build(kind, vlm)
    policy.eval()
    before, after = build_processors(spec, normalizer)
    noise = torch.from_numpy(observation.pop("noise"))[None] if "noise" in observation else None

    def step() -> Any:
        raw: dict[str, Any] = {"task": [TASK]} if kind == "smolvla" else {}
        for name, value in observation.items():
            tensor = torch.from_numpy(value)[None]
            raw[name] = tensor.permute(0, 3, 1, 2).float() / 255 if tensor.ndim == 4 else tensor
        policy.reset()
        with torch.inference_mode():
            given = {} if noise is None else {"noise": noise}
            after(policy.select_action(before(raw), **given))

    return step


def contestant(link: Connection, name: str, kind: str, vlm: str, folder: str, threads: int) -> None:
    """Load, then for every word run once and answer with seconds (wall, processor)."""
    observation = pictures(0)
    if kind == "smolvla":
        noise = np.random.default_rng(0).standard_normal((50, 32), np.float32)
        observation["noise"] = noise
    if name == "lerobot":
        step = lerobot(kind, vlm, threads, observation)
        step()
        link.send(None)
    else:
        from policy.session import OnnxPolicy

        graph, _, provider = name.partition("/")
        policy = OnnxPolicy(Path(folder) / f"{graph}.onnx", threads, provider)

        def step() -> Any:
            return policy.infer(observation, TASK)

        link.send(step())
    while link.recv():
        begun_s, used_s = time.perf_counter(), time.process_time()
        step()
        link.send((time.perf_counter() - begun_s, time.process_time() - used_s))
    link.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def race(kind: str, vlm: str, folder: Path, threads: int, runs: int) -> dict[str, Any]:
    from policy.session import available_providers

    names = ["lerobot", *(f"float/{name}" for name in available_providers()), "int8/cpu"]
    spawn = multiprocessing.get_context("spawn")
    links, processes, chunks = {}, [], {}
    for name in names:
        links[name], theirs = spawn.Pipe()
        arguments = (theirs, name, kind, vlm, str(folder), threads)
        processes.append(spawn.Process(target=contestant, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        chunks[name] = links[name].recv()  # one after the other: loading takes the most memory
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            links[name].send(True)
            times[name].append(links[name].recv())
    result = {}
    for name in names:
        links[name].send(False)
        wall, used = np.median(np.array(times[name]), axis=0) * 1000
        result[name] = {
            "wall_ms": round(float(wall), 1),
            "processor_ms": round(float(used), 1),
            "peak_rss_mib": round(links[name].recv()),
        }
        if chunks[name] is not None:
            difference = np.abs(chunks[name] - chunks["float/cpu"])
            result[name]["differs_mean_deg"] = round(float(difference.mean()), 4)
            result[name]["differs_p99_deg"] = round(float(np.percentile(difference, 99)), 4)
    for process in processes:
        process.join(10)
    for name in names:
        for unit in ("wall_ms", "processor_ms"):
            times_faster = result["lerobot"][unit] / result[name][unit]
            result[name][f"times_faster_{unit[:-3]}"] = round(times_faster, 2)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--policy", choices=["act", "smolvla"], help="both when left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result there, too")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(arguments.threads))
    result: dict[str, Any] = {"threads": arguments.threads, "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ARMADA_ARTEFACTS"] = scratch
        vlm = write_vlm(Path(scratch))
        for kind in [arguments.policy] if arguments.policy else ["act", "smolvla"]:
            folder = Path(scratch) / kind
            folder.mkdir()
            exporter = multiprocessing.get_context("spawn").Process(
                target=export, args=(kind, vlm, folder)
            )
            exporter.start()
            exporter.join()
            if exporter.exitcode != 0:
                raise SystemExit(f"{kind} could not be exported; see the traceback above")
            result[kind] = race(kind, vlm, folder, arguments.threads, arguments.runs)
    result["load_after"] = os.getloadavg()[0]
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
