// What both pages use: elements without markup in strings, and the curl line.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curlLine(method, path, body, file) {
  const parts = [`curl ${method === "GET" ? "" : `-X ${method} `}${quoted(location.origin + path)}`];
  if (body) parts.push("-H 'content-type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  if (file) parts.push(`-o ${file}`);
  return parts.join(" \\\n  ");
}
