// The heads of DiceBear's style Adventurer, in the colours of the order.
const PARTS = "base hair hairColor skinColor eyes eyebrows mouth features glasses earrings".split(" ");

export async function load(from, { crop, skins, hairs, glasses, features }) {
  const { createAvatar } = await from("@dicebear/core/lib/index.js");
  const adventurer = await from("@dicebear/adventurer/lib/index.js");
  return (seed, random) => {
    const avatar = createAvatar(adventurer, {
      // DiceBear's xorshift gives neighbouring seeds related parts, so it is handed a number of the mixed stream.
      seed: String(Math.floor(random() * 4294967296)),
      skinColor: skins,
      hairColor: hairs,
      glassesProbability: glasses,
      featuresProbability: features,
    });
    const svg = avatar.toString().replace('viewBox="0 0 762 762"', `viewBox="${crop}"`);
    const { extra } = avatar.toJson();
    return { svg, attributes: { seed, ...Object.fromEntries(PARTS.map((part) => [part, extra[part] ?? "none"])) } };
  };
}
