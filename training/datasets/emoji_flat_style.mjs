// Flat emoji: the order holds each picture's drawing, those of the test side from the first test seed on.
export async function load(from, { side, test_seeds, drawings }) {
  return (seed) => {
    const body = seed < test_seeds ? drawings.train[seed] : drawings.test[seed - test_seeds];
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 ${side} ${side}">${body}</svg>`;
    return { svg, attributes: {} };
  };
}
