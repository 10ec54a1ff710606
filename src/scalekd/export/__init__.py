"""What becomes of trained weights: timm folders, the hub, ONNX, torch's exported programs; others' weights as ours."""
