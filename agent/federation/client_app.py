"""Our Flower client app: three questions answered out of the training exchange. numpy only.

    statistics  ->  the sketch that ingest wrote
    train       ->  the newest contribution ("anytime"), or an order to the trainer and its result
                    ("window"): partial work counts, with its real number of steps
    install     ->  the new base for the trainer, acknowledged by its digest, and by the keys of
                    all episodes that this robot ever trained on

Work that the coordinator would not count is not uploaded (`protocol.eligibility`). With a new base
comes the digest of the base from which this robot's work went into it; a further snapshot from
that old base holds the same work. Work that came too late for a round may be offered again.

Run as a process beside the SuperNode:
    python -m agent.federation.client_app --runtime HOST:PORT --secret FILE
        --exchange FOLDER
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import RecordDict
from pydantic import ValidationError

from agent.federation.errors import RequestDeclined
from agent.training.errors import BadExchangeFile, TrainingError
from agent.training.exchange import BaseInfo, MergedWork, TrainingExchange, WorkOrder
from host.complaints import first_complaint
from host.logs import set_up_logging
from policy.weights import Weights
from protocol.contribution import Contribution
from protocol.eligibility import Ineligible, explain, judge_work
from protocol.episode_keys import episode_key, pack_keys
from protocol.errors import ProtocolError
from protocol.flower import (
    INSTALL,
    MAX_SKETCH_BYTES,
    STATISTICS,
    TRAIN,
    InstallReply,
    InstallRequest,
    StatisticsReply,
    StatisticsRequest,
    TrainRequest,
    pack,
    unpack,
)
from protocol.update import UpdateLimits, decode_update, encode_update, fits_float16

MAX_BASE_BYTES = 2 << 30
ORDER_POLL_S = 0.2

log = logging.getLogger(__name__)


class ClientApp:
    """Answers Flower messages. `unix_s` is the wall clock of this host, `sleep_s` waits."""

    def __init__(
        self,
        exchange: TrainingExchange,
        unix_s: Callable[[], float] = time.time,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self._exchange = exchange
        self._unix_s = unix_s
        self._sleep_s = sleep_s

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        """Content of the reply; raises RequestDeclined with the one line for the coordinator."""
        handlers = {STATISTICS: self._statistics, TRAIN: self._train, INSTALL: self._install}
        handler = handlers.get(message_type)
        if handler is None:
            raise RequestDeclined(f"unknown message type {message_type!r:.60}")
        try:
            return handler(content)
        except (ProtocolError, TrainingError) as error:
            raise RequestDeclined(f"{message_type}: {error}"[:300]) from error

    def _statistics(self, content: RecordDict) -> RecordDict:
        unpack(StatisticsRequest, content, 0)
        sketch = self._exchange.sketch()
        if sketch is None:
            raise RequestDeclined("no statistics yet: nothing was recorded and ingested")
        blob = json.dumps(sketch, separators=(",", ":"), allow_nan=False).encode()
        if len(blob) > MAX_SKETCH_BYTES:
            raise RequestDeclined(
                f"the sketch has {len(blob)} bytes; {MAX_SKETCH_BYTES} are allowed"
            )
        return pack(StatisticsReply(), blob)

    def _train(self, content: RecordDict) -> RecordDict:
        request, _ = unpack(TrainRequest, content, 0)
        terms, merged = request.terms, self._exchange.merged()
        if terms.local_work == "window":
            work, delta = self._ordered_work(request)
        else:
            work, delta = self._newest_work()
        merged_base = None if merged is None else merged.base_digest
        refusal = judge_work(work.base_digest, work.steps, merged_base, terms)
        if refusal is not None:
            line = explain(refusal, work.base_digest, work.steps, terms)
            if merged is not None and refusal is Ineligible.MERGED:
                line += f", in round {merged.round}"
            raise RequestDeclined(line)
        self._exchange.note_handed_over(delta, work)
        precision = request.precision if fits_float16(delta) else "float32"
        return pack(work, encode_update(delta, precision=precision))

    def _newest_work(self) -> tuple[Contribution, Weights]:
        found = self._exchange.contribution()
        if found is None:
            raise RequestDeclined(
                "nothing gained yet: the trainer has not published a contribution"
            )
        return found

    def _ordered_work(self, request: TrainRequest) -> tuple[Contribution, Weights]:
        """Give the order, wait until it is done or the time is up, take what there is."""
        if request.window_id is None or not request.steps:
            raise RequestDeclined("a window's work needs its id and its number of steps")
        info = self._exchange.base_info()
        base_digest = request.terms.base_digest
        if info is None or info.digest != base_digest:
            raise RequestDeclined(f"the base of the window, {base_digest[:12]}, is not installed")
        deadline_unix_s = self._unix_s() + request.time_s
        self._exchange.order_work(
            WorkOrder(
                window_id=request.window_id,
                base_digest=base_digest,
                steps=request.steps,
                proximal_mu=request.proximal_mu,
                deadline_unix_s=deadline_unix_s,
            )
        )
        try:
            while self._unix_s() < deadline_unix_s:
                done = self._exchange.contribution_info()
                if done and done.window_id == request.window_id and done.steps >= request.steps:
                    break
                self._sleep_s(ORDER_POLL_S)
            work, delta = self._newest_work()
        finally:
            self._exchange.clear_work_order()
        if work.window_id != request.window_id:
            raise RequestDeclined("the trainer did no work in this window: was the robot in use?")
        return work, delta

    def _install(self, content: RecordDict) -> RecordDict:
        request, blob = unpack(InstallRequest, content, MAX_BASE_BYTES)
        try:
            info = BaseInfo.model_validate(request.info)
        except ValidationError as error:
            raise RequestDeclined(f"install: {first_complaint(error)}") from error
        if info.digest != request.base_digest:
            raise RequestDeclined("install: the base's description carries another digest")
        if request.merged_base is not None:
            # First: should the installation fail, the work is in the aggregate all the same.
            self._exchange.note_merged(
                MergedWork(base_digest=request.merged_base, round=request.round)
            )
        if self._present_base() != info:
            update = decode_update(blob, UpdateLimits(max_payload_bytes=MAX_BASE_BYTES))
            self._exchange.install_base(update.weights, info)
            log.info("installed base %s of round %d", info.digest[:12], info.round)
        trained = self._exchange.trained()
        keys = pack_keys(episode_key(info.fleet_secret, digest) for digest in trained)
        return pack(InstallReply(base_digest=info.digest), keys)

    def _present_base(self) -> BaseInfo | None:
        try:
            return self._exchange.base_info()
        except BadExchangeFile as error:
            log.warning("%s; replaced by the new base", error)
            return None


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM comes, which the kernel sends when the parent ends."""
    # Here, so that the handlers above can be used and tested without Flower's internals.
    from agent.federation.flower_runtime import POLL_PERIOD_S, TaskServer

    parser = argparse.ArgumentParser(prog="agent.federation.client_app")
    parser.add_argument("--runtime", required=True, help="the SuperNode's Runtime API, host:port")
    parser.add_argument("--secret", required=True, type=Path)
    parser.add_argument("--exchange", required=True, type=Path)
    options = parser.parse_args(arguments)
    set_up_logging()
    stop = False

    def on_term(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_term)
    app = ClientApp(TrainingExchange(options.exchange))
    server = TaskServer(options.runtime, options.secret.read_bytes(), app.handle)
    while not stop:
        status = server.serve_one()
        if status is None:
            time.sleep(POLL_PERIOD_S)
        elif status != 0:
            log.error("a client app task ended with %d", status)
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
