"""One replica over several devices: a rank for each, all walking the same steps.

- `messages`: everything that the first rank tells the others
- `collectives`: sums and gathers over the ranks, and how a failing rank keeps the others from waiting for it
- `share`: a rank's share of the model, loaded, checked and packed; the same code in every rank
- `steps`: a step's rows as they travel
- `group`: the first rank's view: starts the others, tells them what to do, ends with them
- `model`: the whole model as the first rank's engine sees it
- `prepare`: makes it ready
- `follower`: the process of every other rank

The first rank alone has scheduler, sampler and a link to the front. The others have weights and a cache, and do what
they are told.
"""
