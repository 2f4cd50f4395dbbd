"""The families by name. One more is one file here and one line below."""

from training.families import cgan, cyclegan, dcgan, gan, lapgan, pix2pix, progan, srgan, stylegan, vae
from training.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (gan, dcgan, cgan, lapgan, progan, stylegan, vae, pix2pix, cyclegan, srgan)
}
