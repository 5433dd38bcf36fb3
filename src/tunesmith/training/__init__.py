"""The training loop: one optimiser step, the loop around it, the optimiser, and how a crashed run resumes."""
