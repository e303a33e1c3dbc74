// The private browser page: reads a preprocessed T1, runs the ONNX model, shows and offers both PETs.
import * as ort from "./ort.wasm.min.mjs";

const { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER } = globalThis.niivue; // a classic script of index.html

const at = (id) => document.getElementById(id);
const settings = await (await fetch("page.json")).json();
const brain = new Uint8Array(await (await fetch("brain.bin")).arrayBuffer()); // MNI152 T1, 1 … 255 in the brain, 0 outside
const decode = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));

ort.env.wasm.numThreads = 1; // several need headers that a plain server does not send
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });

let t1 = null; // {voxels, file, name} of an accepted MRI

function report(text, error = "") {
  at("status").textContent = text;
  at("error").textContent = error;
  at("error").hidden = !error;
}

// ── input ────────────────────────────────────────────────────────────────────────────────────────

// The T1's intensities (X fastest), or an error that names the fault, what is expected and the remedy.
async function readT1(file) {
  const again = "Give a T1 that resdm preprocess or resdm synthesise wrote with this model's settings.";
  let image;
  try {
    image = await NVImage.loadFromFile({ file, name: file.name });
  } catch (error) {
    throw new Error(`${file.name}: cannot be read as NIfTI. ${again}`);
  }
  const { hdr } = image, { shape, affine } = settings;
  const found = hdr.dims.slice(1, 1 + hdr.dims[0]);
  while (found.length > 3 && found.at(-1) === 1) found.pop();
  if (found.join() !== shape.join())
    throw new Error(`${file.name}: ${found.join(" × ")} voxels; the model's grid has ${shape.join(" × ")}. ${again}`);
  const away = Math.max(...affine.flat().map((value, i) => Math.abs(value - hdr.affine.flat()[i])));
  if (!(away < 1e-3))
    throw new Error(`${file.name}: another orientation, voxel size or origin: its affine is ${JSON.stringify(hdr.affine.slice(0, 3))}, ` +
      `expected ${JSON.stringify(affine.slice(0, 3))} (RAS+, MNI152). ${again}`);
  const slope = Number.isFinite(hdr.scl_slope) && hdr.scl_slope !== 0 ? hdr.scl_slope : 1;
  const offset = Number.isFinite(hdr.scl_inter) ? hdr.scl_inter : 0;
  const voxels = Float32Array.from(image.img, (value) => value * slope + offset);
  const fault = intensityFault(voxels);
  if (fault) throw new Error(`${file.name}: ${fault}. ${again}`);
  return voxels;
}

function intensityFault(voxels) {
  let low = Infinity, high = -Infinity, bad = 0, outside = 0, n = 0;
  const sums = { x: 0, y: 0, xx: 0, yy: 0, xy: 0 };
  voxels.forEach((x, i) => {
    if (!Number.isFinite(x)) bad += 1;
    low = Math.min(low, x);
    high = Math.max(high, x);
    if (!brain[i]) return void (outside += Math.abs(x) > 1e-3);
    const y = brain[i];
    n += 1;
    sums.x += x; sums.y += y; sums.xx += x * x; sums.yy += y * y; sums.xy += x * y;
  });
  if (bad) return `${bad} voxels are not finite (NaN or infinite)`;
  if (low < -1e-3 || high > 1 + 1e-3) return `intensities from ${low.toPrecision(3)} to ${high.toPrecision(3)}; expected [0, 1]`;
  if (settings.masked && outside) return `${outside} voxels outside the brain are not 0: the head is not removed, or the MRI is moved or turned`;
  const spread = Math.sqrt((sums.xx - sums.x ** 2 / n) * (sums.yy - sums.y ** 2 / n));
  const correlation = spread > 0 ? (sums.xy - (sums.x * sums.y) / n) / spread : 0;
  if (correlation < settings.least_correlation)
    return `correlation ${correlation.toFixed(2)} with the MNI152 T1 in the brain, expected ${settings.least_correlation} or more: ` +
      "no T1, or its voxels are turned";
  return "";
}

// Rows of the text tower's embedding for the prompts of both tracers: 2 × 77.
export function promptRows(age, sex) {
  const rows = new Int32Array(settings.prompts.length * 77).fill(settings.pad);
  settings.prompts.forEach((forms, i) => {
    const { plain, before, after } = forms[sex ?? ""];
    const digits = age === null ? [] : [...age.toFixed(1)].map((one) => settings.spelling[one]);
    rows.set(age === null ? plain : [...before, ...digits, ...after], 77 * i);
  });
  return rows;
}

export async function synthesise(voxels, age, sex) {
  const inputs = {
    t1: new ort.Tensor("float32", voxels, [...settings.shape].reverse()),
    rows: new ort.Tensor("int32", promptRows(age, sex), [settings.prompts.length, 77]),
  };
  const results = await session.run(inputs);
  return Object.fromEntries(settings.tracers.map(({ name }) => [name, results[name].data]));
}

// ── output ───────────────────────────────────────────────────────────────────────────────────────

function link(id, parts, type, name) {
  URL.revokeObjectURL(at(id).href);
  at(id).href = URL.createObjectURL(new Blob(parts, { type }));
  at(id).download = name;
}

async function compressed(parts) {
  return new Response(new Blob(parts).stream().pipeThrough(new CompressionStream("gzip"))).blob();
}

const views = [];

async function show(pets) {
  if (!document.createElement("canvas").getContext("webgl2")) {
    at("no-pictures").hidden = false;
    at("opacity-row").hidden = true;
    return;
  }
  for (const [i, { name, label, header, range }] of settings.tracers.entries()) {
    if (!views[i]) {
      const view = new Niivue({
        sliceType: SLICE_TYPE.MULTIPLANAR, multiplanarShowRender: SHOW_RENDER.NEVER, isColorbar: true, dragAndDropEnabled: false,
        backColor: [0, 0, 0, 1], crosshairWidth: 1, crosshairWidthUnit: "mm", crosshairColor: [0.5, 0.8, 1, 1], loadingText: "", logLevel: "error",
        isCornerOrientationText: true,
      });
      await view.attachToCanvas(at(name));
      views[i] = view;
    }
    const view = views[i];
    while (view.volumes.length) view.removeVolume(view.volumes.at(-1));
    const nifti = new File([decode(header), pets[name]], `${label}.nii`);
    view.addVolume(await NVImage.loadFromFile({ file: t1.file, name: t1.file.name, colormap: "gray", cal_min: 0, cal_max: 1 }));
    view.addVolume(await NVImage.loadFromFile({
      file: nifti, name: nifti.name, colormap: "inferno", opacity: Number(at("opacity").value), cal_min: range[0], cal_max: range[1],
    }));
    view.volumes[0].colorbarVisible = false;
    view.updateGLVolume();
  }
  views[0].broadcastTo(views[1], { "2d": true });
  views[1].broadcastTo(views[0], { "2d": true });
}

async function offer(pets, age, sex) {
  const who = t1.file.name.match(/^sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?/)?.[0] ?? "sub-01";
  for (const { name, label, header, sidecar } of settings.tracers) {
    const file = `${who}_trc-${label}_space-${settings.space}_desc-synth_pet`;
    link(`${name}-nifti`, [await compressed([decode(header), pets[name]])], "application/gzip", `${file}.nii.gz`);
    const text = JSON.stringify({ ...sidecar, prompt: { age, sex }, source: { file: t1.file.name } }, null, 2);
    link(`${name}-json`, [text, "\n"], "application/json", `${file}.json`);
  }
}

at("file").addEventListener("change", async () => {
  t1 = null;
  at("run").disabled = true;
  at("result").hidden = true;
  const [file] = at("file").files;
  if (!file) return report("Choose an MRI.");
  report(`Reading ${file.name} …`);
  try {
    t1 = { voxels: await readT1(file), file };
    at("run").disabled = false;
    report(`${file.name} fits the model.`);
  } catch (error) {
    report("", error.message);
  }
});

at("opacity").addEventListener("input", () => {
  for (const view of views) view.setOpacity(1, Number(at("opacity").value));
});

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!t1) return;
  const age = at("age").value === "" ? null : at("age").valueAsNumber, sex = at("sex").value || null;
  at("run").disabled = true;
  at("busy").hidden = false;
  report("");
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done))); // so that the sign is drawn
  try {
    const start = performance.now();
    const pets = await synthesise(t1.voxels, age, sex);
    const seconds = (performance.now() - start) / 1000;
    at("result").hidden = false;
    at("made").textContent = `${t1.file.name}; prompt: ${age === null ? "no age" : `${age} years`}, ${sex ?? "no sex"}; ` +
      `computed in ${seconds.toFixed(2)} s.`;
    await offer(pets, age, sex);
    await show(pets);
    report("Done.");
    at("result-title").focus();
  } catch (error) {
    report("", `The PETs could not be made: ${error.message}`);
  } finally {
    at("busy").hidden = true;
    at("run").disabled = false;
  }
});

report("Ready: everything is loaded, and the network is no longer needed. Choose an MRI.");
