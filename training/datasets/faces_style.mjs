// The faces of facesjs, cropped from hair to chin.
export async function load(from, { crop, palettes }) {
  const { generate, faceToSvgString } = await from("facesjs/build/index.js");
  return (seed, random) => {
    Math.random = random; // what facesjs draws from
    const gender = random() < 0.5 ? "female" : "male";
    const teamColors = palettes[Math.floor(random() * palettes.length)];
    const face = generate({ teamColors }, { gender });
    const svg = faceToSvgString(face).replace('viewBox="0 0 400 600"', `viewBox="${crop}"`);
    return { svg, attributes: { seed, gender, ...face } }; // after drawing: under a hat, another hair is drawn
  };
}
