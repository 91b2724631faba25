"""Models as files: finding and downloading them, planning their memory, loading them.

`hub` turns a source into a directory, `plan` says what of it fits into a grant of memory, `load` makes a module of it.
Only `load` imports torch.
"""
