"""Drawn faces: facesjs composes them from artists' parts."""

from pathlib import Path

from training.datasets.drawn import RESVG, Style
from training.datasets.packages import Package

PALETTES = (  # of jerseys, headbands and hats: primary, secondary, accent
    ("#89bfd3", "#7a1319", "#07364f"),
    ("#d9534f", "#f5f5f5", "#3b3b3b"),
    ("#4f9d69", "#f2c14e", "#1d3b2a"),
    ("#f2a541", "#2e4057", "#f7f3e3"),
    ("#6a5acd", "#f0e6ef", "#2b2350"),
    ("#3d6fb6", "#f4d35e", "#0d1b2a"),
)

STYLE = Style(
    module=Path(__file__).with_name("faces_style.mjs"),
    order={
        "crop": "-30 42 460 460",  # of facesjs's 400 x 600 canvas: hair to chin, the head in the middle
        "palettes": PALETTES,
    },
    packages=(
        Package("npm", "facesjs", "5.0.3", "5dcd38542f674a7df9d85dae2bade41dc99bdb317f6f723f1b4923aa0d0e4dda", 116_253),
        Package("npm", "dlv", "1.1.3", "7c316193a4d49e70b3f552e4d52573ecb5b8154075f049cb30c9c2dc9ebb7c90", 2_160),
        Package("npm", "dset", "3.1.4", "ea5753352be6a2416c35f0f23831db3a9986c6d9183c339fbb3f11f94d4c8357", 4_353),
        Package(
            "npm", "svg-path-bbox", "2.1.0", "da7b6b61601dbb9613407ea39e87c955c52434f9604990529e3d5de79f4fa45b", 5_785
        ),
        Package("npm", "svgpath", "2.6.0", "800acf61f8659853d6f46c133a2a0c056943572840407c3db63fdaf731f12f81", 13_032),
        RESVG,
    ),
)
