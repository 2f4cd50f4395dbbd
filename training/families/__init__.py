"""The families by name. One more is one file here and one line below."""

from training.families import cgan, dcgan, gan
from training.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (gan.FAMILY, dcgan.FAMILY, cgan.FAMILY)}
