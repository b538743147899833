"""Engines that sample responses: transformers, vLLM in this process, a vLLM server."""
