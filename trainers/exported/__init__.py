"""Models for runtimes other than this program: ONNX and torch.export, checked against the network that they were made of.

May import `model` and below; onnx, onnxruntime and onnxscript only where they are needed (`pip install 'm2can[export]'`).
"""
