"""Is there a browser to open a page in?"""
import os
import sys


def has_display():
    """False where a browser would be one for terminals, or none."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(os.environ.get(name) for name in names)
