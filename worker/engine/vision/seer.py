"""What a paged model computes where sequences have images: their embeddings, and positions in three parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.plan import Row
from worker.engine.vision.sight import Sight


class Seer:
    """Computes packed rows of a model, some with images.

    Args:
        model: with its tower.
        sight: knows the images.
    """

    def __init__(self, model: nn.Module, sight: Sight) -> None:
        self._model: Any = model
        self._sight = sight
        self._device = next(model.parameters()).device

    def logits(self, rows: Sequence[Row], packed: Tensor, kept: Tensor) -> Tensor:
        """Of the packed tokens `kept`; the first rows of `packed` are ids and positions."""
        model = self._model
        embeds: Tensor = model.get_input_embeddings()(packed[:1])
        places, added = self._splice(rows, embeds[0])
        positions = self._positions(rows) if self._sight.vision.turns else packed[1:2]
        if not added:
            output = model(inputs_embeds=embeds, position_ids=positions, use_cache=False, logits_to_keep=kept)
            return output.logits[0]
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=self._device)
        mask[0, torch.tensor(places, device=self._device)] = True
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            use_cache=False,
            visual_pos_masks=mask,
            deepstack_visual_embeds=[torch.cat(level, 0) for level in added],
        ).last_hidden_state
        return model.lm_head(hidden[0, kept])

    def _splice(self, rows: Sequence[Row], embeds: Tensor) -> tuple[list[int], list[list[Tensor]]]:
        """Put images into `embeds` [tokens, hidden]; their places, and what is added in each later layer."""
        places: list[int] = []
        added: list[list[Tensor]] = []
        first = 0
        for row in rows:
            if row.sequence.visual is not None:
                for seen, low, high, offset in row.sequence.visual.overlaps(row.start, row.stop):
                    at = first + low - row.start
                    now, *later = (level[offset : offset + high - low] for level in self._sight.features(seen))
                    embeds[at : at + high - low] = now
                    places += range(at, at + high - low)
                    added = added or [[] for _ in later]
                    for level, part in zip(added, later, strict=True):
                        level.append(part)
            first += row.stop - row.start
        return places, added

    def _positions(self, rows: Sequence[Row]) -> Tensor:
        """[3, 1, tokens]"""
        parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        for row in rows:
            visual = row.sequence.visual
            for which, part in enumerate(parts):
                if visual is None or visual.positions is None:
                    part += range(row.start, row.stop)
                else:
                    part += visual.positions.part(which, row.start, row.stop)
        return torch.tensor(parts, device=self._device)[:, None]
