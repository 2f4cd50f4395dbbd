"""The families by name. One more is one file here and one line below."""

from training.families import cgan, cyclegan, dcgan, gan, pix2pix, progan, srgan, stylegan, vae
from training.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (gan, dcgan, cgan, progan, stylegan, vae, pix2pix, cyclegan, srgan)
}
