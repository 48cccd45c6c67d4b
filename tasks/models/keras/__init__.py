"""The Keras CNN on TensorFlow."""
