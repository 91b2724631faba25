"""``python llama_driver.py FILE.gguf THREADS CONTEXT SEQUENCES``: llama.cpp through its low-level batch interface.

Reads commands as JSON lines and answers each with one: ``{"prompts": [[ids]], "tokens": n}`` prefills every prompt,
then decodes n tokens of all of them together, greedily: ``{"prefill_s": total, "steps_s": [...], "ids": [[...]]}``.
Needs numpy and llama-cpp-python.
"""

import ctypes
import json
import sys
import time

import llama_cpp as llama
import numpy as np

BATCH = 512


@llama.llama_log_callback
def _silent(level, text, data):
    pass


class Driver:
    """One loaded file."""

    def __init__(self, file: str, threads: int, context: int, sequences: int) -> None:
        llama.llama_backend_init()
        llama.llama_log_set(_silent, ctypes.c_void_p(0))
        wanted = llama.llama_model_default_params()
        wanted.n_gpu_layers, wanted.use_mmap = 0, False
        self.model = llama.llama_model_load_from_file(file.encode(), wanted)
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = context * sequences, sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_batch = settings.n_ubatch = BATCH
        self.context = llama.llama_init_from_model(self.model, settings)
        self.batch = llama.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def run(self, ids, positions, sequences, wanted) -> None:
        """One batch."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for row, (token, position, sequence, logits) in enumerate(zip(ids, positions, sequences, wanted, strict=True)):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, logits
            batch.seq_id[row][0], batch.n_seq_id[row] = sequence, 1
        status = llama.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def best(self, row: int) -> int:
        """The most likely token of a row."""
        pointer = llama.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(pointer, (self.vocabulary,)).argmax())

    def answer(self, prompts, tokens: int) -> dict:
        """Prefill and decode."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        last, started = [], time.perf_counter()
        for sequence, prompt in enumerate(prompts):
            for start in range(0, len(prompt), BATCH):
                part = prompt[start : start + BATCH]
                ends = start + len(part) == len(prompt)
                self.run(
                    part,
                    range(start, start + len(part)),
                    [sequence] * len(part),
                    [0] * (len(part) - 1) + [int(ends)],
                )
            last.append(self.best(len(part) - 1))
        prefill_s = time.perf_counter() - started
        steps, found, lengths = [], [[token] for token in last], [len(prompt) for prompt in prompts]
        for _ in range(tokens - 1):
            began = time.perf_counter()
            self.run(last, lengths, range(len(prompts)), [1] * len(prompts))
            last = [self.best(row) for row in range(len(prompts))]
            steps.append(time.perf_counter() - began)
            lengths = [length + 1 for length in lengths]
            for ids, token in zip(found, last, strict=True):
                ids.append(token)
        return {"prefill_s": prefill_s, "steps_s": steps, "ids": found}


if __name__ == "__main__":
    driver = Driver(sys.argv[1], *map(int, sys.argv[2:5]))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(driver.answer(**json.loads(line))), flush=True)
