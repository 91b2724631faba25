"""What placement does under demand that does not fit: ``python -m tests.bench.placement [--seconds N] [--per-s N]``.

Ten small models on three hosts that hold six of them, two gateways. The same trace of arrivals once under the planner
and once under a naive one, as load-on-miss servers have it (`tests/support/naive_planner.py`). A swap is a replica that
was unloaded. The wait is the time to the first text, of a request that is not streamed to its end. By default models
have no weights and load within a second or two, so that it is not the machine's cores that are measured; with
``--backend torch`` they have.

``--only swap`` measures one thing instead: two models in the room of one, asked for in turn. From the request to its
answer, with the spare process there (`--rounds`).
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from shared.records import ModelRecord
from tests.support.fleet_process import wait_for
from tests.support.separate_fleet import SeparateFleet, Worker, models_toml
from tests.support.swapping import MODEL_BYTES, Report, run
from tests.support.tiny import make_checkpoint

PLANNERS = ("plexus", "naive")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("demand", "swap"), help="default: both")
    parser.add_argument("--planner", choices=PLANNERS, action="append", help="default: both")
    parser.add_argument("--seconds", type=float, default=120.0, help="of demand, for each planner")
    parser.add_argument("--per-s", type=float, default=3.0, help="requests a second")
    parser.add_argument("--backend", choices=("synthetic", "torch"), default="synthetic", help="of the models")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of the swaps")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # fleets are ended on the way out
    with tempfile.TemporaryDirectory(prefix="plexus-bench-") as scratch:
        if options.only != "swap":
            print("| planner | requests | failed | swaps | swaps per 1,000 | wait p50 s | p95 s | longest s |")
            print("|---|--:|--:|--:|--:|--:|--:|--:|")
            for name in options.planner or PLANNERS:
                folder, is_naive = Path(scratch) / name, name == "naive"
                report = run(
                    folder,
                    seconds=options.seconds,
                    per_s=options.per_s,
                    seed=options.seed,
                    is_naive=is_naive,
                    backend=options.backend,
                    say=_say,
                )
                show_demand(name, report)  # at once: a run that is cut short leaves what it found
        if options.only != "demand":
            show_swaps(swaps(Path(scratch) / "swap", options.rounds))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show_demand(name: str, report: Report) -> None:
    """A row."""
    waits = " | ".join(f"{report.tally.quantile(share):.2f}" for share in (0.5, 0.95, 1.0))
    print(
        f"| {name} | {report.num_requests} | {len(report.problems)} | {report.num_swaps} | "
        f"{report.swaps_per_1000:.0f} | {waits} |",
        flush=True,
    )


def swaps(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from a request to its answer: of a model that is there, and of the one that must displace it."""
    paths = {name: make_checkpoint(folder / name, seed=seed) for seed, name in enumerate(("a", "b"))}
    records = [ModelRecord(id=name, source=str(path)) for name, path in paths.items()]
    (folder / "models.toml").write_text(models_toml(records))
    found: dict[str, list[float]] = {"warm": [], "swap": []}
    with SeparateFleet(folder / "fleet") as fleet:
        gateway = fleet.gateway(models=str(folder / "models.toml"), eviction={"min_residency_s": 0.0})
        worker = fleet.worker("one", MODEL_BYTES["torch"], slots=4, prefill_tokens=64)
        gateway.started()
        worker.started()
        with httpx.Client(base_url=gateway.url, timeout=120) as http:
            for name in ("a", "b") * rounds:
                spares = worker.said().count("standby.ready")
                found["swap"].append(_answer_s(http, name))
                time.sleep(1.0)  # it has served for as long as its load took
                found["warm"].append(_answer_s(http, name))
                _wait_for_spares(worker, spares + 1)
    found["swap"] = found["swap"][2:]  # the first filled the room, the second found files that nobody had read
    return found


def _wait_for_spares(worker: Worker, number: int) -> None:
    """Until the worker has had so many spare replicas ready."""
    wait_for(lambda: worker.said().count("standby.ready") >= number, 60)


def _answer_s(http: httpx.Client, model: str) -> float:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    started = time.monotonic()
    http.post("/v1/chat/completions", json=body).raise_for_status()
    return time.monotonic() - started


def show_swaps(found: dict[str, list[float]]) -> None:
    """A table."""
    print("| one token from | median s | least s | most s |")
    print("|---|--:|--:|--:|")
    for name, text in (("warm", "the model that is there"), ("swap", "the one that displaces it (A→B→A)")):
        times = found[name]
        print(f"| {text} | {statistics.median(times):.3f} | {min(times):.3f} | {max(times):.3f} |")


if __name__ == "__main__":
    main()
