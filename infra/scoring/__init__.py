"""Scoring with a model file over onnxruntime, in this process or in a clean one."""
