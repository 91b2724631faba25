"""Chat messages to token ids, and token ids to text. No tensors here.

Prompts: `conversation` brings messages into the shape that `traits` found out about the `template`; `vocabulary`
tokenises what it renders. Answers: `detokenise` turns ids into text, a sorter (`sorter`, `harmony`) parts content from
reasoning and tool calls, `stops` ends it, `output` collects it; `stream` joins these. `model_text` is the way in.
"""
