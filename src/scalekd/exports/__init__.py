"""Export trained models to timm folders, the hub, ONNX and torch programs, and import the authors' released weights."""
