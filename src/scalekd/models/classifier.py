"""A classifier for inference, built from any timm model."""

from __future__ import annotations

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from scalekd.errors import UserError
from scalekd.models.image_model import ImageModel

_ID = len("n01440764")


class Classifier(ImageModel):
    """A model that maps images to logits or features; see `ImageModel` for its arguments."""

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `[B, K]` of RGB images in [0, 1] `[B, 3, h, w]`."""
        logits: Tensor = self.run("model", self.model, images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Compute the input of the head's last layer, `[B, D]`, for RGB images in [0, 1] `[B, 3, h, w]`.

        Raises:
            UserError: If the model is not a timm model.
        """
        if not hasattr(self.model, "forward_head"):
            raise UserError(
                f"model: {self.name} is not a timm model and gives no features; only its logits can be used"
            )
        features = self.run("model", self.model.forward_features, images)
        pooled: Tensor = self.model.forward_head(features, pre_logits=True)
        return pooled

    def imagenet_classes(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Name the logits of a model that was trained on ImageNet, given data whose classes are ImageNet's, too.

        Args:
            classes: The data's class names, which are WordNet ids or begin with them (`n01440764`, `n01440764_tench`).

        Returns:
            For each logit the data's class name, or the WordNet id if the data lacks the class. Empty if the model has
            another number of classes, or if a class of the data is not among the model's.
        """
        subset = infer_imagenet_subset(self.model)
        if subset is None or self.num_classes != ImageNetInfo(subset).num_classes():
            return ()
        names = {name[:_ID]: name for name in classes}
        ids = ImageNetInfo(subset).label_names()
        return tuple(names.get(i, i) for i in ids) if len(names) == len(classes) and names.keys() <= set(ids) else ()

    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the head by a linear layer with `weight` `[K, D]` and `bias` `[K]`."""
        self.model.reset_classifier(len(weight))
        self.num_classes = len(weight)
        head = self.model.get_classifier()
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        head.to(self.mean.device)
