"""ONNX models on the chip: `load_onnx` reads a model's file, and every node launches torch's operators."""
