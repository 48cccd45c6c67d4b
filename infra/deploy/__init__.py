"""Deployment files: images, compose, Kubernetes."""
