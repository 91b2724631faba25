"""What the Responses API has beyond one request and its answer: the store, and work in the background.

`store` keeps responses where every gateway finds them, `exchange` restores what a request refers to and stores its
answer, `background` knows the responses under way here and cancels them wherever they are, `routes` serves what is
stored.
"""
