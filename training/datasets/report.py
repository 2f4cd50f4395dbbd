"""What a source turned out to hold: which files were used, repaired, or left out, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field

REPAIRS: Mapping[str, str] = {
    "grey": "grey among colour: repeated over the three channels",
    "colour": "colour among grey: turned to grey",
    "alpha": "transparent: laid on white",
    "palette": "palette: expanded",
    "16-bit": "more than 8 bits per channel: scaled to 8",
    "cmyk": "CMYK, YCbCr or Lab: turned to RGB",
    "rotated": "turned upright as its EXIF orientation says",
    "off-size": "not square or smaller than asked: cropped to the central square and resized",
    "animated": "several frames: the first one is used",
}
REFUSALS: Mapping[str, str] = {
    "not-an-image": "in no image format that is read here",
    "empty": "zero bytes",
    "truncated": "ends too early",
    "broken": "cannot be decoded",
    "unreadable": "cannot be read from the disk or the zip",
    "bomb": "too large when decompressed",
    "duplicate": "the same pixels as an image already used",
    "unsafe-path": "a path that leads out of the zip, or a link",
    "no-class": "outside the class folders",
    "no-counterpart": "no file of the same name on the other side of the pairs",
    "not-side-by-side": "not twice as wide as high, so it does not hold input and target side by side",
}


PAIR_FOLDERS = (("input", "target"), ("a", "b"), ("A", "B"), ("source", "target"))
"""Names of the two folders that pairs lie in, by equal file names."""


@dataclass
class DataReport:
    """Counts and names per kind; the kinds are the keys of REPAIRS and REFUSALS.

    Attributes:
        used: images in the set, repaired ones included.
        repaired: kind to names; one file may be under several kinds.
        left_out: kind to names.
    """

    source: str
    used: int = 0
    train: int = 0
    test: int = 0
    classes: tuple[str, ...] = ()
    repaired: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def repair(self, kind: str, name: str) -> None:
        """Count one repaired file."""
        self.repaired.setdefault(kind, []).append(name)

    def leave_out(self, kind: str, name: str) -> None:
        """Count one file that is not used."""
        self.left_out.setdefault(kind, []).append(name)

    @property
    def clean(self) -> bool:
        """Whether every file was used as it is."""
        return not self.repaired and not self.left_out

    def counts(self) -> dict[str, int]:
        """Number of files per kind, repaired and left out."""
        return {kind: len(names) for part in (self.repaired, self.left_out) for kind, names in part.items()}

    def text(self, names: int = 3) -> str:
        """The report for people, with up to `names` file names per kind."""
        lines = [f"{self.source}: {self.used} images used ({self.train} train, {self.test} test)"]
        if self.classes:
            shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
            lines.append(f"  {len(self.classes)} classes: {shown}")
        if self.classes in {tuple(sorted(pair)) for pair in PAIR_FOLDERS}:
            lines.append("  read as two classes, not as pairs: `--family pix2pix` without a degradation reads pairs")
        for title, part, kinds in (("repaired", self.repaired, REPAIRS), ("left out", self.left_out, REFUSALS)):
            for kind in sorted(part, key=lambda kind: -len(part[kind])):
                found = part[kind]
                some = ", ".join(found[:names]) + (f" and {len(found) - names} more" if len(found) > names else "")
                lines.append(f"  {title} {len(found)} {kind} ({kinds[kind]}): {some}")
        return "\n".join(lines)
