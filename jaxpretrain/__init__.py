"""Pretraining of OLMo language models and Sapiens masked autoencoders in JAX, on one trainer."""

__version__ = "0.1.0"
