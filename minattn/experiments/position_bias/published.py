"""The gaps that arXiv 2502.01951 publishes for in-context recall, read off its figures 2 to 8.

Means of 5 runs of 100,000 steps:
(training bias, mask, position, residual, layers) -> gaps of first-middle, first-last, middle-last.
"""

_NO_BIAS = {                                  # figures 2, 4 and 5: causal mask
    ("none", False): {2: (.059, .077, .018), 4: (.077, .094, .021), 6: (.091, .106, .011)},
    ("decay", False): {2: (-.055, -.073, -.003), 4: (-.010, -.001, .008), 6: (.020, .014, -.010)},
    ("rope", False): {2: (.002, -.002, -.009), 4: (.025, .043, .017), 6: (.026, .044, .017)},
    ("none", True): {2: (.247, .266, -.004), 6: (.107, .138, -.002), 10: (.011, .015, .002)},
    ("decay", True): {2: (-.088, -.164, -.059), 6: (.057, .087, .019), 10: (-.003, -.005, -.011)},
    ("rope", True): {2: (.379, .394, .004), 6: (.436, .436, -.015), 10: (.179, .024, -.153)},
}
_BIAS = {                                     # figures 3, 6, 7 and 8: two layers with residual
    ("first", "last"): {
        ("none", "none"): (-.002, .000, -.001), ("causal", "none"): (.276, .308, -.006),
        ("none", "sinusoidal"): (.293, .013, -.264), ("causal", "sinusoidal"): (.316, .078, -.238),
        ("none", "rope"): (.249, -.002, -.281), ("causal", "rope"): (.472, .433, -.241)},
    ("first",): {
        ("none", "none"): (.007, .000, .000), ("causal", "none"): (.478, .518, .052),
        ("none", "sinusoidal"): (.554, .560, .003), ("causal", "sinusoidal"): (.554, .556, .003),
        ("none", "rope"): (.549, .554, .003), ("causal", "rope"): (.550, .556, .003)},
    ("middle",): {
        ("none", "none"): (.003, .000, -.001), ("causal", "none"): (.231, .250, -.002),
        ("none", "sinusoidal"): (-.553, -.003, .549), ("causal", "sinusoidal"): (-.554, .000, .552),
        ("none", "rope"): (-.553, -.003, .550), ("causal", "rope"): (-.536, .003, .535)},
    ("last",): {
        ("none", "none"): (-.001, .000, -.002), ("causal", "none"): (.186, .204, -.001),
        ("none", "sinusoidal"): (-.007, -.558, -.550),
        ("causal", "sinusoidal"): (-.007, -.558, -.549),
        ("none", "rope"): (-.005, -.557, -.551), ("causal", "rope"): (-.010, -.555, -.550)},
}

GAPS = {((), "causal", position, residual, layers): gaps
        for (position, residual), depths in _NO_BIAS.items() for layers, gaps in depths.items()}
GAPS |= {(places, mask, position, True, 2): gaps
         for places, cells in _BIAS.items() for (mask, position), gaps in cells.items()}
