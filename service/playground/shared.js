// What the pages use: elements without markup in strings, requests with the key, and the curl line.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// The key stays in this tab and is never put into an address.
const KEPT = "ganymede-key";
export const key = {
  get: () => sessionStorage.getItem(KEPT) ?? "",
  set: (value) => sessionStorage.setItem(KEPT, value),
};

export function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  return fetch(path, { ...options, headers });
}

// An <img> sends no key, so its picture is fetched where there is one.
export async function picture(image, path) {
  if (!key.get()) { image.src = path; return; }
  const reply = await ask(path);
  if (!reply.ok) return image.dispatchEvent(new Event("error"));
  image.src = URL.createObjectURL(await reply.blob());
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curlLine(method, path, body, file, form) {
  const parts = [`curl ${method === "GET" || form ? "" : `-X ${method} `}${quoted(location.origin + path)}`];
  if (key.get()) parts.push('-H "Authorization: Bearer $KEY"');
  if (body) parts.push("-H 'content-type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  for (const [name, value] of Object.entries(form ?? {})) parts.push(`-F ${quoted(`${name}=${value}`)}`);
  if (file) parts.push(`-o ${file}`);
  return parts.join(" \\\n  ");
}
