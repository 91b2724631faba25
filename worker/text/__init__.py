"""Chat messages to token ids, and token ids to text. No tensors here."""
