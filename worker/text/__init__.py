"""Chat messages to token ids, and token ids to text. No tensors here.

Prompts: `conversation` brings messages into the shape that `traits` found out about the `template`; `vocabulary`
tokenises what it renders; `images` reads the images among them, `sight` gives these their room. Answers: `detokenise`
turns ids into text, a sorter (`sorter`, `harmony`) parts content from reasoning and tool calls, `stops` ends it,
`output` collects it; `stream` joins these. `model_text` is the way in.

Tool calls: `tools` is the table of conventions, `call_readers` and `tagged_calls` read them as they are written.
Constraints: `constrain` turns what a job asks into a grammar (`grammar`, `call_grammar`, `raw_values`, `schema`, in the
language of `lark`) and finds out that it compiles; `guidance` is the library for that, and the rank uses it too.
"""
