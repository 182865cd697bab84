"""Drawn clips: articulated figures that act, with their action and every displacement known."""
