"""Images in prompts: pixels, embeddings, places and positions.

A job with images is opened first: `pixels` makes of each file what the model's tower reads, in a thread of its own.
`visual` then tells the scheduler how far a step may go, and the prefix index what an image's tokens are. When a step
reaches an image whose embeddings are not known, the tower (`tower`) runs once; they are kept (`features`) and put in
the place of the image's tokens (`seeing_model`). `sight` joins these for one rank.
"""
