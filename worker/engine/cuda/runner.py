"""Step plans on a device: decode steps by graphs, started ahead of the host; all else as it comes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from shared import log
from worker.engine.block_table import BlockTable
from worker.engine.cache_space import WindowCap
from worker.engine.cuda.capture import CudaRecorder, Reading, Recorder
from worker.engine.cuda.choosing import NOT_FINITE, choose_chooser
from worker.engine.cuda.graph_runner import GraphRunner
from worker.engine.cuda.models import DeviceModel
from worker.engine.cuda.options import CudaChoice
from worker.engine.cuda.static import Decoding, Sizes
from worker.engine.cuda.step import slot_of
from worker.engine.errors import DeviceLost, NotFinite, OutOfMemory
from worker.engine.penalties import has_penalties
from worker.engine.plan import Row, Sampled, StepPlan, Transfer
from worker.engine.prepared import Prepared
from worker.engine.sampler import sample
from worker.engine.sequence import Sequence as Sequence_

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class _Started:
    """A row of the step that was started ahead: its place in the step, and where its key and value went."""

    index: int
    row: Decoding
    slots: tuple[int, int]


class CudaRunner:
    """Runs plans on a device.

    A step of decode rows alone is replayed from a graph. Rows whose next token the device can choose by itself are
    plain; penalties, grammars and log probabilities are the host's, which then reads the logits of these rows. If all
    rows are plain, the next step is started before this one's tokens are read, in the expectation that the next plan
    goes on with the same rows. What of it the next plan does ask for is taken; the rest is forgotten: it wrote only
    where no sequence had computed anything yet, and whoever is given that place writes it before reading.

    Args:
        prepared: the model, whose `make` gives a DeviceModel.
        device: where it is.
        dtype: of the cache.
        num_blocks, block_tokens, cap, num_host_blocks: of the cache.
        max_rows: decode rows of a step, at most; a plan with more runs without graphs.
        context_limit: tokens of a sequence, at most.
        choice: which pieces may be used.
        recorder: of graphs; None: the device's own, where there is one, else none are used.
    """

    def __init__(
        self,
        prepared: Prepared,
        device: torch.device | str,
        dtype: torch.dtype,
        num_blocks: int,
        block_tokens: int,
        *,
        cap: WindowCap | None = None,
        num_host_blocks: int = 0,
        max_rows: int = 0,
        context_limit: int = 0,
        choice: CudaChoice | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        choice = choice or CudaChoice()
        device = torch.device(device)
        self._model = cast(
            DeviceModel, prepared.make(dtype, num_blocks, block_tokens, cap=cap, num_host_blocks=num_host_blocks)
        )
        self.vocab_size = self._model.vocab_size
        self._runs_ahead = choice.runs_ahead
        self._graphs: GraphRunner | None = None
        self._ahead: dict[int, _Started] = {}  # by the sequence's identity
        self._reading: Reading | None = None
        if recorder is None and device.type == "cuda":
            recorder = CudaRecorder(device)
        if choice.has_graphs and recorder and max_rows:
            limit = -(-(context_limit or num_blocks * block_tokens) // block_tokens)
            self._graphs = self._record(recorder, choice, device, dtype, max_rows, limit)

    @property
    def has_graphs(self) -> bool:
        """Whether decode steps are replayed."""
        return self._graphs is not None

    def _record(
        self,
        recorder: Recorder,
        choice: CudaChoice,
        device: torch.device,
        dtype: torch.dtype,
        max_rows: int,
        pages: int,
    ) -> GraphRunner | None:
        model = self._model
        kinds = [(min(pages, model.num_blocks), model.num_blocks)]
        if model.is_capped:
            kinds.append((min(pages, model.num_window_blocks), model.num_window_blocks))
        sizes = Sizes(max_rows, model.block_tokens, tuple(kinds))
        try:
            chooser = choose_chooser(device, self.vocab_size, use_triton=choice.has_triton)
            graphs = GraphRunner(model.compute, chooser, recorder, sizes, self.vocab_size, device, dtype)
            graphs.record()
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
        except Exception as error:  # some module does what cannot be recorded
            _log.warning("graphs.left_out", reason=f"{type(error).__name__}: {error}"[:300])
            return None
        _log.info("graphs.recorded", max_rows=graphs.max_rows, chooser=chooser.name)
        return graphs

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Sampled]:
        """Compute the plan's tokens and sample at each kept position, in order."""
        try:
            return self._run(plan)
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
        except torch.OutOfMemoryError as error:
            self._forget()
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        except Exception:
            self._forget()
            raise

    def _run(self, plan: StepPlan) -> list[Sampled]:
        # 1. Rows that were started ahead and are as was expected have their results already.
        started = [self._find_started(row) for row in plan.rows]
        reading = self._reading
        self._forget()
        rest = [row for row, found in zip(plan.rows, started, strict=True) if found is None]
        by_row: dict[int, list[Sampled]] = {}
        if len(rest) < len(plan.rows):
            assert reading is not None
            decoding = [found.row for found in started if found is not None]
            # 2. While the host reads them, the device computes what comes after them, if that is all there is.
            if not rest:
                self._start_ahead(decoding, [found.index for found in started if found is not None])
            tokens = reading.wait()
            for row, found in zip(plan.rows, started, strict=True):
                if found is not None:
                    by_row[id(row.sequence)] = [_sampled(tokens[found.index])]
        # 3. All other rows are computed now.
        if rest:
            is_whole = len(rest) == len(plan.rows)
            graphs = self._graphs
            if graphs and len(rest) <= graphs.max_rows and all(map(_is_decode, rest)):
                by_row |= self._replay(graphs, rest, may_start_ahead=is_whole)
            else:
                by_row |= self._compute(rest)
        return [sampled for row in plan.rows for sampled in by_row.get(id(row.sequence), [])]

    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Move blocks of the cache, one after the other."""
        if any(transfer.kind != "spill" for transfer in transfers):
            self._forget()  # what is moved may be where a step that was started ahead has written
        try:
            self._model.transfer(transfers)
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error

    def _replay(self, graphs: GraphRunner, rows: list[Row], *, may_start_ahead: bool) -> dict[int, list[Sampled]]:
        decoding = [Decoding(row.sequence, row.start, row.sequence.ids[row.start]) for row in rows]
        reading = graphs.start(decoding)
        by_host = [index for index, row in enumerate(rows) if not is_plain(row.sequence)]
        if by_host:
            chosen = sample(graphs.logits(by_host), [rows[index].sequence for index in by_host])
        elif may_start_ahead:
            self._start_ahead(decoding, list(range(len(rows))))
        results = [[_sampled(token)] if index not in by_host else [] for index, token in enumerate(reading.wait())]
        for index, token in zip(by_host, chosen if by_host else [], strict=True):
            results[index] = [token]
        return {id(row.sequence): result for row, result in zip(rows, results, strict=True)}

    def _compute(self, rows: list[Row]) -> dict[int, list[Sampled]]:
        part = StepPlan(tuple(rows))
        turns = part.turns
        logits = self._model.forward(rows, part.kept)
        sampled = iter(sample(logits, turns) if turns else [])
        return {id(row.sequence): [next(sampled) for _ in part.kept(row)] for row in rows}

    def _start_ahead(self, rows: list[Decoding], indices: list[int]) -> None:
        """Start the step after the one of these rows, which were at `indices` of it, if all of them can go on."""
        graphs = self._graphs
        if not graphs or not self._runs_ahead:
            return
        following = [
            Decoding(row.sequence, row.position + 1, 0, carried=index)
            for row, index in zip(rows, indices, strict=True)
            if row.position + 2 < row.sequence.max_ids  # else it ends with the token that is being chosen
        ]
        # A row without room for its next token would be missing, and computing it by itself costs as much again.
        if not following or any(row.position >= row.sequence.room for row in following):
            return
        self._reading = graphs.start(following)
        self._ahead = {
            id(row.sequence): _Started(index, row, self._slots(row.sequence, row.position))
            for index, row in enumerate(following)
        }

    def _find_started(self, row: Row) -> _Started | None:
        """The row as it was started ahead; None if it was not, or not like this."""
        started = self._ahead.get(id(row.sequence))
        if started is None or started.row.sequence is not row.sequence:
            return None
        if not _is_decode(row) or row.start != started.row.position:
            return None
        return started if started.slots == self._slots(row.sequence, row.start) else None

    def _slots(self, sequence: Sequence_, position: int) -> tuple[int, int]:
        tables: tuple[BlockTable, BlockTable] = sequence.table, sequence.window_table
        full, window = (slot_of(table, position, self._model.block_tokens) for table in tables)
        return full, window

    def _forget(self) -> None:
        self._ahead, self._reading = {}, None


def is_plain(sequence: Sequence_) -> bool:
    """Whether the device can choose its next token by itself."""
    return sequence.grammar is None and sequence.sample.logprobs is None and not has_penalties(sequence)


def _is_decode(row: Row) -> bool:
    return row.stop - row.start == 1 and not row.drafts and row.is_sampled


def _sampled(token: int) -> Sampled:
    if token == NOT_FINITE:
        raise NotFinite
    return Sampled(token)
