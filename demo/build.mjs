// Build the page into dist/, ready for any static hosting: node build.mjs (or npm run build).
// It shows policy.onnx, policy.xml and policy.json of this folder; without them what deploy/export.py makes of pretrained/heading.pt.
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

process.chdir(fileURLToPath(new URL(".", import.meta.url)));
rmSync("dist", { recursive: true, force: true });
mkdirSync("dist");
const policy = ["policy.onnx", "policy.xml", "policy.json"];
if (policy.every((name) => existsSync(name))) {
  for (const name of policy) copyFileSync(name, `dist/${name}`);
} else {
  const command = ["../deploy/export.py", "../pretrained/heading.pt", "dist/policy.onnx"];
  try {
    execFileSync(process.env.PYTHON ?? "python3", command, { stdio: "inherit" });
  } catch {
    console.error("error: no policy to show; python ../deploy/export.py CHECKPOINT policy.onnx makes one");
    process.exit(2);
  }
}
copyFileSync("index.html", "dist/index.html");
await build({
  entryPoints: ["main.js"],
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "eof",
  logLevel: "warning",
  external: ["module", "fs", "path", "url", "crypto", "worker_threads", "node:*"], // what MuJoCo's loader asks for in Node
});
// Compressed here and unpacked by the page, so that hosts that compress nothing are quick, too. Not .gz: some hosts unpack that.
const engines = {
  "mujoco.bin": "@mujoco/mujoco/mujoco.wasm",
  "onnxruntime.bin": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
};
for (const [name, source] of Object.entries(engines)) {
  writeFileSync(`dist/${name}`, gzipSync(readFileSync(`node_modules/${source}`), { level: 9 }));
}
const size = readdirSync("dist").reduce((sum, name) => sum + statSync(`dist/${name}`).size, 0);
console.log(`dist: ${(size / 1e6).toFixed(1)} MB`);
