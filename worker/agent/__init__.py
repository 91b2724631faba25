"""The agent of a host: follows its assignment, holds the ledger of memory and cores, keeps fronts running. No tensors.

`agent` joins the parts; `keeper` keeps one assigned model running, by way of `fetching`, `sizing`, the `ledger` and a
`front_process`; `heart` writes the host's records. `ledger`, `assignment` and `backoff` are free of I/O and clocks.
"""
