"""Scenes under several lights: photographed ones, anybody's folders of them, and rendered ones."""

from latentrobust.data.lights.multi_illumination import multi_illumination
from latentrobust.data.lights.scene_folder import scene_folder
from latentrobust.data.lights.synthetic_illumination import synthetic_illumination

__all__ = ["multi_illumination", "scene_folder", "synthetic_illumination"]
