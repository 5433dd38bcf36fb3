"""The native engine: a compact decoder of our own for a frozen base with LoRA, on a packed stream of
tokens.
"""
