"""Export: SavedModel, TensorFlow Lite, ONNX and model card."""
