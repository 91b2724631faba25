"""What a scrape shows of requests that ended."""

import re

from gateway import metrics
from gateway.errors import Unavailable
from gateway.flight import Flight
from gateway.metrics import Metrics
from shared.messages import Accepted, Delta, Done, Job, Prompt, Timings, Usage
from shared.records import ReplicaRecord


def a_flight() -> Flight:
    return Flight(Job(id="j", model="m", reply="r", prompt=Prompt(text="x")), max_attempts=4, deadline=99.0, now=0.0)


def finished(counts: Metrics) -> Flight:
    flight = a_flight()
    flight.on_hold = lambda held: setattr(held, "observe_gap", counts.gaps.of(held.model, held.worker).observe)
    flight.on_item("A", "w", Accepted("j", 1, 7), 0.02)
    flight.on_item("A", "w", Delta("j", 1, 0, 0, [1], "a"), 0.3)
    flight.on_item("A", "w", Delta("j", 1, 0, 1, [2], "b"), 0.34)
    flight.on_item("A", "w", Delta("j", 1, 0, 2, [3], "c", "stop"), 0.5)
    flight.on_item("A", "w", Done("j", 1, Usage(7, 3, 0, 4), Timings()), 0.5)
    return flight


def scrape(counts: Metrics) -> dict[str, float]:
    lines = counts.render().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_a_finished_request_is_counted_everywhere() -> None:
    counts = Metrics()
    counts.finished(finished(counts))
    seen, here = scrape(counts), 'model="m",worker="w"'
    assert seen['plexus_requests_total{model="m",outcome="ok",worker="w"}'] == 1
    assert seen[f"plexus_prompt_tokens_total{{{here}}}"] == 7
    assert seen[f"plexus_completion_tokens_total{{{here}}}"] == 3
    assert seen[f"plexus_cached_prompt_tokens_total{{{here}}}"] == 4
    assert seen['plexus_queue_wait_seconds_sum{model="m"}'] == 0.02
    assert seen[f"plexus_time_to_first_token_seconds_sum{{{here}}}"] == 0.3
    assert seen[f"plexus_tokens_per_second_sum{{{here}}}"] == 10
    assert seen[f"plexus_request_duration_seconds_sum{{{here}}}"] == 0.5


def test_gaps_between_tokens_fall_into_buckets() -> None:
    counts = Metrics()
    finished(counts)
    seen, name = scrape(counts), "plexus_inter_token_latency_seconds"
    here = 'model="m",worker="w"'
    assert abs(seen[f"{name}_sum{{{here}}}"] - 0.2) < 1e-9
    assert seen[f"{name}_count{{{here}}}"] == 2
    buckets = {key: value for key, value in seen.items() if key.startswith(f"{name}_bucket")}
    assert len(buckets) == len(metrics._GAPS) + 1
    assert buckets[f'{name}_bucket{{le="0.03",{here}}}'] == 0
    assert buckets[f'{name}_bucket{{le="0.05",{here}}}'] == 1
    assert buckets[f'{name}_bucket{{le="+Inf",{here}}}'] == 2


def test_a_request_that_no_replica_took_has_no_worker() -> None:
    counts, flight = Metrics(), a_flight()
    flight.fail(Unavailable("x"), 1.0)
    counts.finished(flight)
    assert scrape(counts)['plexus_requests_total{model="m",outcome="error",worker="none"}'] == 1


def test_load_times_are_those_of_the_records() -> None:
    record = ReplicaRecord(id="r", model="m", worker="w", state="ready", load_s=2.5)
    unloaded = ReplicaRecord(id="s", model="m", worker="w", state="loading")
    seen = scrape(Metrics(lambda: [record, unloaded]))
    assert seen['plexus_replica_load_seconds{model="m",replica="r",worker="w"}'] == 2.5
    assert not any('replica="s"' in key for key in seen)


def test_the_documentation_names_every_metric() -> None:
    documented = set(re.findall(r"\| (plexus_\w+)", metrics.__doc__ or ""))
    rendered = set(re.findall(r"# TYPE (plexus_\w+)", Metrics().render().decode()))
    assert documented == rendered
