"""The native engine: a compact decoder of our own for a frozen base with LoRA, on packed batches."""
