"""Any timm classifier, as it is used at inference."""

from __future__ import annotations

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from scalekd.errors import UserError
from scalekd.models.build import ImageModel

_ID = len("n01440764")


class Classifier(ImageModel):
    """A timm model, images in and logits or features out; for its arguments see `ImageModel`."""

    def forward(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` -> logits `[B, K]`."""
        logits: Tensor = self.run("model", self.model, images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` -> what the head's last layer sees, `[B, D]`.

        Raises:
            UserError: If the model is none of timm's.
        """
        if not hasattr(self.model, "forward_head"):
            raise UserError(f"model: {self.name} gives no features as timm models do; only its logits can be measured")
        features = self.run("model", self.model.forward_features, images)
        pooled: Tensor = self.model.forward_head(features, pre_logits=True)
        return pooled

    def imagenet_classes(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the logits of a model that was trained on ImageNet, where those of the data are ImageNet's too.

        Args:
            classes: The data's class names, which are WordNet ids or begin with them (`n01440764`, `n01440764_tench`).

        Returns:
            The data's name of a class, or its id where the data has none of it; nothing where the model has another
            number of classes, or one of the data's is not among them.
        """
        subset = infer_imagenet_subset(self.model)
        if subset is None or self.num_classes != ImageNetInfo(subset).num_classes():
            return ()
        names = {name[:_ID]: name for name in classes}
        ids = ImageNetInfo(subset).label_names()
        return tuple(names.get(i, i) for i in ids) if len(names) == len(classes) and names.keys() <= set(ids) else ()

    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the head by a linear one: `weight` `[K, D]`, `bias` `[K]`."""
        self.model.reset_classifier(len(weight))
        self.num_classes = len(weight)
        head = self.model.get_classifier()
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        head.to(self.mean.device)
