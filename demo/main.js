// An exported policy (deploy/export.py) walks in the browser: MuJoCo's physics and ONNX Runtime in WebAssembly, three.js draws.
// Z is up, metres, radians; MuJoCo's conventions throughout. Nothing is asked of any other host.
import loadMujoco from "@mujoco/mujoco";
import * as ort from "onnxruntime-web/wasm";
import * as THREE from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";

const LATE = 0.25; // what the machine does not manage beyond this is dropped [s]
const TURN = 2.0; // by a key that is held [rad/s]
const FASTER = 1.0; // the same [m/s^2]
const PUSH = 40.0; // impulse of a push [N s]
const PUSH_SECONDS = 0.1;
const REST = 2.0; // how long it lies after a fall [s]
const ALSO = { j: "ArrowLeft", l: "ArrowRight", i: "ArrowUp", k: "ArrowDown" }; // the keys of deploy/steer.py
const COLOURS = { right: 0x2a4667, left: 0x9bb5d4, other: 0x4a7ab2, told: 0x006e19 }; // those of motions/view.py
// From where the camera looks, ahead, left and up of the character's course: at first, from the side, the front, above [m].
const VIEWS = [[-2.8, -2.8, 1.0], [0.0, -4.2, 0.0], [4.2, 0.0, 0.0], [0.0, -0.1, 6.0]];
const PLANE = 0, SPHERE = 2, CAPSULE = 3, BOX = 6; // MuJoCo's mjtGeom

// ---- 1. Loading ----

async function unpacked(name) {
  const packed = (await fetch(name)).body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(packed).arrayBuffer();
}

async function load() {
  const text = async (name) => (await fetch(name)).text();
  const parts = [unpacked("mujoco.bin"), unpacked("onnxruntime.bin"), text("policy.xml"), text("policy.json")];
  const [physics, runtime, xml, json] = await Promise.all(parts);
  ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
  ort.env.wasm.wasmBinary = runtime;
  const mujoco = await loadMujoco({ wasmBinary: physics });
  const session = await ort.InferenceSession.create("policy.onnx", { executionProviders: ["wasm"] });
  return [mujoco, session, xml, JSON.parse(json)];
}

// ---- 2. The physics ----

class Walker {
  constructor(mujoco, session, xml, about) {
    this.mujoco = mujoco;
    this.session = session;
    this.about = about;
    this.model = mujoco.MjModel.from_xml_string(xml);
    this.data = new mujoco.MjData(this.model);
    this.dt = this.model.opt.timestep; // [s]
    this.told = "command" in about.inputs; // whether it takes commands
    this.speeds = about.speed_range_m_s ?? [0, 0];
    const bodies = about.fall_bodies.map((name) => mujoco.mj_name2id(this.model, mujoco.mjtObj.mjOBJ_BODY.value, name));
    this.falls = new Set(bodies);
    this.start = -1;
    this.reset();
  }

  reset() {
    this.start = (this.start + 1) % this.about.starts;
    this.mujoco.mj_resetDataKeyframe(this.model, this.data, this.start);
    this.mujoco.mj_forward(this.model, this.data); // where the geoms are, which the first picture draws
    this.heading = 0.0; // that it is told [rad, world]
    this.speed = this.speeds[0]; // [m/s]
    this.steps = 0;
    this.places = [this.data.qpos.slice(0, 2)]; // on the ground, in the last second, from step to step of the policy [m]
    this.owed = 0.0; // time that has passed, but not yet in the physics [s]
    this.pushed = 0; // physics steps until a push ends
    this.down = 0.0; // how long it lies [s]
  }

  push(angle) {
    const force = [Math.cos(angle), Math.sin(angle)].map((x) => (x * PUSH) / PUSH_SECONDS); // [N]
    this.data.xfrc_applied.set(force, 6); // of body 1, the root
    this.pushed = Math.round(PUSH_SECONDS / this.dt);
  }

  async think() {
    const double = (values) => new ort.Tensor("float64", Float64Array.from(values), [1, values.length]);
    const seen = { qpos: double(this.data.qpos), qvel: double(this.data.qvel) };
    if (this.told) seen.command = double([this.heading, this.speed]);
    const { targets } = await this.session.run(seen);
    this.data.ctrl.set(targets.data);
  }

  // Let time pass [s]: as many steps as fit into it, the policy at the start of each control step.
  async advance(seconds) {
    this.owed += seconds;
    for (; this.owed >= this.dt; this.owed -= this.dt) {
      if (this.steps % this.about.substeps === 0) {
        await this.think();
        this.places = [...this.places.slice(-this.about.control_hz), this.data.qpos.slice(0, 2)];
        if (this.down || this.fallen()) this.down += this.dt * this.about.substeps;
      }
      this.mujoco.mj_step(this.model, this.data);
      this.steps += 1;
      this.pushed -= 1;
      if (this.pushed === 0) this.data.xfrc_applied.fill(0.0);
    }
    if (this.down > REST) this.reset();
  }

  way() { // of the last second, in which sway does not count [m/s]
    const [[x, y], [endX, endY]] = [this.places[0], this.places.at(-1)];
    const seconds = Math.max(this.places.length - 1, 1) / this.about.control_hz;
    return [(endX - x) / seconds, (endY - y) / seconds];
  }

  fallen() {
    const body = this.model.geom_bodyid;
    const contacts = this.data.contact; // a copy
    let found = false;
    for (let i = 0; i < contacts.size(); i++) {
      const contact = contacts.get(i);
      const pair = [body[contact.geom1], body[contact.geom2]];
      contact.delete();
      found ||= pair.includes(0) && pair.some((x) => this.falls.has(x)); // body 0 is the world
    }
    contacts.delete();
    return found;
  }
}

// ---- 3. The picture ----

function shapeOf(type, [x, y, z]) {
  if (type === SPHERE) return new THREE.SphereGeometry(x, 32, 24);
  if (type === BOX) return new THREE.BoxGeometry(2 * x, 2 * y, 2 * z);
  if (type === CAPSULE) return new THREE.CapsuleGeometry(x, 2 * y, 12, 24).rotateX(Math.PI / 2); // MuJoCo's lie along z
  throw new Error(`no shape for geoms of type ${type}`);
}

function groundTexture() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 256;
  const paint = canvas.getContext("2d");
  for (const [colour, ...square] of [["#f2f4f6", 0, 0, 256, 256], ["#d5dbe2", 0, 0, 128, 128], ["#d5dbe2", 128, 128, 128, 128]]) {
    paint.fillStyle = colour;
    paint.fillRect(...square);
  }
  const texture = new THREE.CanvasTexture(canvas);
  texture.colorSpace = THREE.SRGBColorSpace;
  texture.wrapS = texture.wrapT = THREE.RepeatWrapping;
  texture.repeat.set(60, 60);
  texture.anisotropy = 8;
  return texture;
}

class Stage {
  constructor(walker) {
    this.walker = walker;
    const sky = new THREE.Color(0xdfeaf3);
    this.scene = new THREE.Scene();
    this.scene.background = sky;
    this.scene.fog = new THREE.Fog(sky, 12, 45);
    this.camera = new THREE.PerspectiveCamera(40, 1, 0.1, 100);
    this.camera.up.set(0, 0, 1);
    this.renderer = new THREE.WebGLRenderer({ antialias: true });
    this.renderer.shadowMap.enabled = true;
    document.body.prepend(this.renderer.domElement);
    this.orbit = new OrbitControls(this.camera, this.renderer.domElement);
    Object.assign(this.orbit, { maxPolarAngle: 1.57, enablePan: false });
    this.course = 0.0; // smooth [rad]
    this.look(0);
    this.group = new THREE.Group(); // goes where the character goes
    this.scene.add(this.group, new THREE.HemisphereLight(0xffffff, 0xb8c0cc, 2.0));
    const sun = new THREE.DirectionalLight(0xffffff, 2.2);
    sun.position.set(-2, -3, 6);
    sun.castShadow = true;
    sun.shadow.mapSize.set(2048, 2048);
    Object.assign(sun.shadow.camera, { left: -2.5, right: 2.5, top: 2.5, bottom: -2.5 });
    this.ground = new THREE.Mesh(new THREE.PlaneGeometry(120, 120), new THREE.MeshLambertMaterial({ map: groundTexture() }));
    this.ground.receiveShadow = true;
    const green = new THREE.MeshStandardMaterial({ color: COLOURS.told, roughness: 0.6 });
    const along = (shape, x) => new THREE.Mesh(shape.rotateZ(-Math.PI / 2).translate(x, 0, 0.04), green);
    this.arrow = new THREE.Group().add(along(new THREE.CylinderGeometry(0.025, 0.025, 1, 16), 0.5));
    this.arrow.add(along(new THREE.ConeGeometry(0.07, 0.2, 24), 0.1));
    this.arrow.visible = walker.told;
    this.group.add(sun, sun.target, this.arrow);
    this.scene.add(this.ground);
    this.geoms = this.meshes();
    addEventListener("resize", () => this.resize());
    this.resize();
  }

  meshes() {
    const { model, mujoco } = this.walker;
    const made = [];
    for (let i = 0; i < model.ngeom; i++) {
      if (model.geom_type[i] === PLANE) continue;
      const name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY.value, model.geom_bodyid[i]);
      const material = new THREE.MeshStandardMaterial({ color: COLOURS[name.split("_")[0]] ?? COLOURS.other, roughness: 0.6 });
      const mesh = new THREE.Mesh(shapeOf(model.geom_type[i], model.geom_size.slice(3 * i, 3 * i + 3)), material);
      mesh.castShadow = mesh.receiveShadow = true;
      mesh.matrixAutoUpdate = false;
      this.scene.add(mesh);
      made.push([i, mesh]);
    }
    return made;
  }

  resize() {
    this.camera.aspect = innerWidth / innerHeight;
    this.camera.updateProjectionMatrix();
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(innerWidth, innerHeight);
  }

  look(view) {
    this.view = view;
    const way = new THREE.Vector3(...VIEWS[view]).applyAxisAngle(this.camera.up, this.course);
    this.camera.position.addVectors(this.orbit.target, way);
  }

  draw() {
    const { data, heading, speed } = this.walker;
    const { qpos: [x, y], geom_xpos: places, geom_xmat: turns } = data;
    const turn = new THREE.Matrix3();
    for (const [i, mesh] of this.geoms) {
      turn.fromArray(turns, 9 * i).transpose(); // MuJoCo's stand row by row
      mesh.matrix.setFromMatrix3(turn).setPosition(...places.slice(3 * i, 3 * i + 3));
    }
    const [ahead, left] = new THREE.Vector2(...this.walker.way()).rotateAround(new THREE.Vector2(), -this.course);
    const around = 0.1 * Math.atan2(left, ahead);
    this.course += around;
    this.camera.position.sub(this.orbit.target).applyAxisAngle(this.camera.up, this.view % 3 ? around : 0); // 1, 2
    this.orbit.target.set(x, y, 0.8);
    this.camera.position.add(this.orbit.target);
    this.orbit.update();
    this.group.position.set(x, y, 0);
    this.ground.position.set(2 * Math.round(x / 2), 2 * Math.round(y / 2), 0); // by whole patterns
    const [shaft, head] = this.arrow.children; // together as long as the way of a second
    this.arrow.rotation.z = heading;
    shaft.scale.x = head.position.x = Math.max(speed - 0.2, 0.1);
    this.renderer.render(this.scene, this.camera);
  }
}

// ---- 4. Keys, and the loop ----

const demo = (globalThis.demo = { walker: null, stage: null, pace: 1.0, pictures: 0 }); // what a test of the page looks at
const held = new Set();

function press(key) {
  const walker = demo.walker;
  if (key === "p") walker.push(2 * Math.PI * Math.random());
  if (key === "m") demo.pace = demo.pace < 1 ? 1.0 : 0.2;
  if (key === "r") walker.reset();
  if (key === "v") demo.stage.look((demo.stage.view + 1) % VIEWS.length);
}

function listen() {
  const keyOf = ({ key }) => ALSO[key.toLowerCase()] ?? (key.length === 1 ? key.toLowerCase() : key);
  addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow")) event.preventDefault();
    if (!event.repeat) press(keyOf(event));
    held.add(keyOf(event));
  });
  addEventListener("keyup", (event) => held.delete(keyOf(event)));
  addEventListener("blur", () => held.clear());
  for (const button of document.querySelectorAll("button")) {
    button.hidden = !demo.walker.told && button.dataset.key.startsWith("Arrow");
    button.addEventListener("pointerdown", () => {
      press(button.dataset.key);
      held.add(button.dataset.key);
    });
    for (const end of ["pointerup", "pointerleave"]) button.addEventListener(end, () => held.delete(button.dataset.key));
  }
}

function steer(walker, seconds) {
  const one = (key, other) => held.has(key) - held.has(other);
  const [low, high] = walker.speeds;
  walker.heading += TURN * seconds * one("ArrowLeft", "ArrowRight");
  walker.speed = Math.min(Math.max(walker.speed + FASTER * seconds * one("ArrowUp", "ArrowDown"), low), high);
}

async function main() {
  const state = document.getElementById("state");
  try {
    demo.walker = new Walker(...(await load()));
    demo.stage = new Stage(demo.walker);
  } catch (error) {
    state.textContent = `It cannot run here: ${error.message ?? error}`;
    throw error;
  }
  const { walker, stage } = demo;
  listen();
  let last = performance.now();
  const frame = async (now) => {
    const seconds = Math.min((now - last) / 1000, LATE) * demo.pace;
    last = now;
    steer(walker, seconds);
    await walker.advance(seconds);
    stage.draw();
    demo.pictures += 1;
    const short = (speed) => `${speed.toFixed(1).replace(/^0/, "")} m/s`;
    const told = walker.told ? `, told ${short(walker.speed)}` : "";
    state.textContent = walker.down ? "it fell, and begins anew" : short(Math.hypot(...walker.way())) + told;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

main();
