"""Judgement, pure: records, image checks, expectations, metrics and promotion gates.

The lowest layer. It imports none of Prefect, boto3, obstore, mlflow, torch, tensorflow, and nothing from the layers
above it, so everything here can be tested without a service or a GPU.
"""
