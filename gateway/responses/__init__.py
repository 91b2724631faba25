"""What the Responses API has beyond one request and its answer: the store, and work in the background.

`store` keeps responses where every gateway finds them, `exchange` restores what a request refers to and stores its
answer, `background` knows the responses under way here and cancels them wherever they are, `work` brings one of them
to its end, `recorder` and `events` keep its events, `follow` streams those from any gateway, `routes` serves what is
stored.
"""
