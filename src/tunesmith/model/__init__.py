"""A frozen, quantised base with an adapter on it, behind one small interface (`engine.py`)."""
