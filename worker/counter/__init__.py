"""Counts the tokens of prompts for any model of the catalogue, loaded or not, from its tokenizer files alone.

One process on each host, started by the agent when the first count is asked for. `files` finds the tokenizer, `counter`
counts with it and keeps the last few, `__main__` is the process; `worker.agent.counting` is its other end. No tensors.
"""
