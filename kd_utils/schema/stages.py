"""What a stage of the training does, as far as its options tell."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def trains_discriminator(stage: Mapping[str, Any]) -> bool:
    """Whether the student discriminator is updated: by `train_d`, else where it is what judges the generator."""
    judges = 'gan' in stage.get('losses', ()) and stage.get('discriminator', 'student') == 'student'
    return bool(stage.get('train_d', judges))


def distils_discriminator(stage: Mapping[str, Any], features: Collection[str]) -> bool:
    """Whether the feature losses of the discriminator are part of its update.

    They are where the generator's features are distilled, or wherever it is trained if those never are.

    Args:
        stage: The stage's options.
        features: The generator's feature losses that the file has.
    """
    return not features or any(name in stage.get('losses', ()) for name in features)
