"""A rank without a model: it speaks the rank's protocol and emits tokens that are a function of seed, choice and place.

Started like the real one (``python -m tests.support.fake_rank --channel-fd N --stamp-fd M --parent-pid P``). The
model's options steer it: `hz` steps a second, `prefill_s` before a job's first token, `ids` allowed, `log` a file
that gets one line ``key choice position`` for each token made, `fail` a message to die with while loading,
`refuse` a message with which every job is refused.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from shared.process import die_with_parent
from worker import protocol
from worker.channel import Channel, ChannelClosed
from worker.protocol import Abort, Fatal, Loading, Output, Prefilling, RankConfig, Ready, Refused, Step, Stop, Submit
from worker.stamp import Stamp

CONTEXT = 512
VOCABULARY = 448
BLOCKS, BLOCK_TOKENS = 512, 16


def token(seed: int, choice: int, position: int, ids: list[int]) -> int:
    """The token at a place: any rank makes the same one."""
    return ids[(seed * 31 + choice * 17 + position * 7 + position * position) % len(ids)]


class _Row:
    def __init__(self, job: Submit, index: int, resume: list[int], now: float, options: dict[str, Any]) -> None:
        self.job, self.index, self.position = job, index, len(resume)
        self.ready_at = now + float(options.get("prefill_s", 0.0))
        self.is_new = True


class FakeRank:
    """The loop."""

    def __init__(self, channel: Channel, stamp: Stamp, config: RankConfig) -> None:
        self._channel, self._stamp, self._options = channel, stamp, config.options
        self._rows: dict[tuple[str, int], _Row] = {}
        self._ids = list(self._options.get("ids") or range(32, 250))
        self._log = Path(self._options["log"]) if "log" in self._options else None
        self._count = 0

    def send(self, message: Any) -> None:
        """One message to the front."""
        self._channel.send(protocol.encode(message))

    def run(self) -> None:
        """Serve until told to stop."""
        pause_s = 1.0 / float(self._options.get("hz", 200))
        told = 0.0
        while True:
            for frame in self._channel.receive(pause_s if self._rows else None):
                if not self._handle(protocol.decode_front_to_rank(frame)):
                    return
            now = time.monotonic()
            due = [row for row in self._rows.values() if row.ready_at <= now]
            late = [row for row in self._rows.values() if row.ready_at > now]
            self._count += 1
            self._stamp.write(self._count, "decode" if due else "prefill" if late else "idle")
            step = Step(outputs=[self._advance(row) for row in due], running=len(self._rows), blocks_free=BLOCKS)
            if late and now - told > 0.2:
                told = now
                step.prefilling = [Prefilling(row.job.key, 1, len(row.job.prompt)) for row in late]
            if step.outputs or step.prefilling:
                self.send(step)

    def _handle(self, message: Any) -> bool:
        match message:
            case Submit() if "refuse" in self._options:
                self.send(Step(refused=[Refused(message.key, "engine_error", self._options["refuse"])]))
            case Submit():
                for choice in message.choices:
                    row = _Row(message, choice.index, choice.resume, time.monotonic(), self._options)
                    self._rows[message.key, choice.index] = row
            case Abort():
                for key, index in message.choices:
                    for known in [k for k in self._rows if k[0] == key and index in (-1, k[1])]:
                        del self._rows[known]
            case Stop():
                return False
        return True

    def _advance(self, row: _Row) -> Output:
        sample = row.job.sample
        id = token(sample.seed, row.index, row.position, self._ids)
        output = Output(row.job.key, row.index, row.position, [id], cached=3 if row.is_new else 0)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{row.job.key} {row.index} {row.position}\n")
        row.position += 1
        row.is_new = False
        if id in sample.stop_ids:
            output.finish = "stop"
        elif row.position >= sample.max_tokens:
            output.finish = "length"
        if output.finish is not None:
            del self._rows[row.job.key, row.index]
        return output


def main() -> None:
    """Load (quickly), then serve."""
    parser = argparse.ArgumentParser()
    for name in ("--channel-fd", "--stamp-fd", "--parent-pid"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent_pid)
    channel, stamp = Channel.from_fd(options.channel_fd), Stamp(options.stamp_fd)
    config = protocol.decode_front_to_rank(channel.receive(None)[0])
    assert isinstance(config, RankConfig)
    rank = FakeRank(channel, stamp, config)
    stamp.write(0, "load")
    rank.send(Loading("read", 1, 2))
    if "fail" in config.options:
        rank.send(Fatal(config.options["fail"]))
        return
    rank.send(
        Ready(
            blocks=BLOCKS,
            block_tokens=BLOCK_TOKENS,
            context_limit=CONTEXT,
            vocab_size=VOCABULARY,
            fingerprint="fake",
            measured_bytes=1 << 20,
            load_s=0.1,
        )
    )
    stamp.write(0, "idle")
    try:
        rank.run()
    except ChannelClosed:
        return


if __name__ == "__main__":
    main()
