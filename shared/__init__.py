"""The contract between gateways and workers: names, messages, records, settings and the bus.

Imports neither `gateway` nor `worker`, neither torch nor FastAPI.
"""
