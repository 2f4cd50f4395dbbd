"""The families by name. One more is one file here and one line below."""

from training.families import cgan, dcgan, gan, srgan
from training.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (gan.FAMILY, dcgan.FAMILY, cgan.FAMILY, srgan.FAMILY)}
